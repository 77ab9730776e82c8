"""Tables and figures of results whose numbers are known by hand."""

from __future__ import annotations

import re

import pytest

from hf_kd.audit.schema import PAPER_NOTE
from hf_kd.bench.figures import draw, in_short
from hf_kd.bench.lines import lines
from hf_kd.bench.tables import markdown
from hf_kd.bench.tables_latex import latex


def scores(df, dr, dft=None, drt=None, **more):
    """Scores of a class protocol, HM as the bench writes it."""

    def hm(f, r):
        return 2 * (100 - f) * r / (100 - f + r)

    dft, drt = df if dft is None else dft, dr if drt is None else drt
    four = {"D_f": df, "D_r": dr, "D_ft": dft, "D_rt": drt, "HM": hm(df, dr), "HM_t": hm(dft, drt)}
    return four | {f"KR {name}": value for name, value in four.items()} | {"MIA": 50.0} | more


def cells(text: str, group: str, row: str) -> dict[str, str]:
    """One row of the table below a bold title, by column."""
    part = text.split(f"**{group}**")[1]
    head = next(line for line in part.splitlines() if line.startswith("|"))
    found = next(line for line in part.splitlines() if line.startswith(f"| {row} |"))
    return dict(zip([c.strip() for c in head.split("|")], [c.strip() for c in found.split("|")], strict=True))


HEAD = "The model's own head"


def test_hm_is_taken_of_each_seed_and_then_averaged(one, results):
    experiment = one(methods=[{"method": "esc-t", "label": "esc-t", "seeds": [0, 1]}])
    store = results(experiment, {"esc-t": [scores(0, 100), scores(100, 100)]})
    row = cells(markdown(experiment, store), HEAD, "esc-t")
    assert row["HM"].startswith("50.0 ± 70.7"), "HM of the mean accuracies would be 66.7"
    assert row["D_f"].startswith("50.0 ± 70.7")
    assert row["D_r"] == "100.0", "no deviation where seeds agree"


def test_avg_gap_of_table_5(one, results):
    """The paper's Table 5, ESC against Retrain: (4.42 + 0 + 1.04 + 0.34) / 4 by hand, and a second seed."""
    experiment = one(
        protocol={"kind": "random"},
        methods=["original", "esc", {"method": "neggrad", "seeds": [0, 1]}, {"method": "retrain", "label": "retrain"}],
    )
    made = {
        "retrain": [{"D_f": 95.58, "D_r": 100.0, "D_t": 95.23, "MIA": 74.64}],
        "esc": [{"D_f": 100.0, "D_r": 100.0, "D_t": 94.19, "MIA": 74.98}],
        "neggrad": [{"D_f": 95.58, "D_r": 98.0, "D_t": 95.23, "MIA": 74.64},
                    {"D_f": 95.58, "D_r": 100.0, "D_t": 95.23, "MIA": 70.64}],
    }  # fmt: skip
    text = markdown(experiment, results(experiment, made))
    assert cells(text, "Rest", "esc")["Avg Gap"] == "1.45"
    assert cells(text, "Rest", "retrain")["Avg Gap"] == "0.00"
    assert cells(text, "Rest", "neggrad")["Avg Gap"] == "0.75 ± 0.35", "0.5 and 1"
    assert cells(text, "Rest", "esc")["RTE, s"] == "2.0", "0.5 s of features and 1.5 s of fit"
    assert set(cells(text, HEAD, "esc")) >= {"D_f", "D_r", "D_t"}
    assert "Not run yet: original (1)" in text
    without = one(protocol={"kind": "random"}, methods=["esc"])
    alone = markdown(without, results(without, made))
    assert "| Avg Gap" not in alone
    assert "to those of a retrained model: of retrain, or of a row with reference: true" in alone
    assert "distance of D_f, D_r, D_t and MIA to those of retrain." in text


def test_the_layout_of_table_1(one, results):
    experiment = one(methods=["original", {"method": "esc", "k": 1, "label": "esc"}])
    store = results(experiment, {"original": [scores(99, 98, 90, 91)], "esc": [scores(1, 97, 2, 90)]})
    text = markdown(experiment, store)
    groups = re.findall(r"\*\*(.+?)\*\*", text)
    assert groups[0] == "Knowledge Retention, converged probe", "what is left comes first"
    assert groups.index(HEAD) == 1
    row = cells(text, HEAD, "esc")
    assert [row[c] for c in ("D_f", "D_r", "HM", "D_ft", "D_rt", "HM_t")] == [
        "1.0",
        "97.0",
        "98.0",
        "2.0",
        "90.0",
        "93.8",
    ]
    rest = cells(text, "Rest", "esc")
    assert (rest["needs"], rest["seeds"], rest["features s"], rest["fit s"], rest["peak MiB"]) == (
        "D_f", "1", "0.500", "1.5", "7"
    )  # fmt: skip
    assert cells(text, "Rest", "original")["fit s"] == "-", "nothing was made there"
    table = latex(experiment, store)
    assert (
        r"\multicolumn{6}{c}{Knowledge Retention, converged probe} & \multicolumn{6}{c}{The model's own head}" in table
    )
    assert r"Method & $D_{f}$ & $D_{r}$ & HM & $D_{ft}$ & $D_{rt}$ & $HM_{t}$" in table
    assert r"\cmidrule(lr){2-7} \cmidrule(lr){8-13}" in table


def test_latex_says_what_the_label_says(one, results):
    label = r"50% of_it & {more} #1 ~ ^ \alpha $x$ <a> | b"
    experiment = one(methods=["original", {"method": "esc", "label": label}, {"method": "lau", "label": "lau_x"}])
    store = results(experiment, {"original": [scores(99, 98)], label: [scores(1, 97)], "lau_x": ["ValueError: no"]})
    table = latex(experiment, store)
    body = table.split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines()
    assert body[1].startswith(
        r"50\% of\_it \& \{more\} \#1 \textasciitilde{} \textasciicircum{} \textbackslash{}alpha \$x\$ "
        r"\textless{}a\textgreater{} \textbar{} b & "
    )
    assert body[2] == r"lau\_x & \multicolumn{13}{l}{failed} \\"
    columns = len(re.search(r"\\begin\{tabular\}\{(l)(r+)\}", table).group(2))
    for line in body[:2]:
        assert len(re.findall(r"(?<!\\)&", line)) == columns, "as many cells as columns"
        assert line.endswith(r" \\")
    for name in ("$", "{", "}", "%", "#", "_"):
        bare = re.sub(r"\\text\w+\{\}|\\multicolumn\{\d+\}\{l\}\{failed\}", "", "\n".join(body)).replace("$\\pm$", "")
        assert not re.search(rf"(?<!\\){re.escape(name)}", bare), name
    assert table.count("{") - table.count(r"\{") == table.count("}") - table.count(r"\}")
    assert r"50% of_it &amp; {more} #1 \~ ^ \\alpha \$x\$ &lt;a&gt; \| b" in markdown(experiment, store)


@pytest.mark.parametrize("label", ["[ours] esc", "*ours", " [x]"])
def test_no_label_is_taken_for_a_part_of_the_line_above_it(one, results, label):
    r"""Behind \\ LaTeX reads a star or a length in brackets, on the next line too."""
    experiment = one(methods=["original", {"method": "esc", "label": label}])
    store = results(experiment, {"original": [scores(99, 98)], label: [scores(1, 97)]})
    body = latex(experiment, store).split("\\midrule\n")[1].splitlines()[1]
    assert body.lstrip()[0] == "{"


@pytest.mark.parametrize("label", ["<!-- a", "<b>a</b>", "a | b", "`a`", "*a*", "[a](b)", "two\nlines", "_a_"])
def test_names_show_themselves_in_the_tables(one, results, label):
    """Read by a Markdown parser, each place where a label or a class stands has its text and no markup of its own."""
    from markdown_it import MarkdownIt

    experiment = one(
        protocol={"kind": "incremental", "forget": ["cat", label]},
        methods=["original", {"method": "esc", "label": label}, {"method": "lau", "label": f"{label} fails"}, "ssd"],
    )
    kept = {"stages": [scores(1, 97)]}
    found = {"original": [scores(99, 98)], label: [scores(1, 97)], f"{label} fails": [f"ValueError: {label}"]}
    text = markdown(experiment, results(experiment, found, **kept))
    shown = " ".join(label.split())
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    said = [inline for token in tokens for inline in [token.content] if token.type == "html_block"]
    children = [child for token in tokens for child in token.children or []]
    assert not said
    assert {child.type for child in children} <= {"text", "strong_open", "strong_close", "softbreak"}
    plain = ["".join(child.content for child in token.children or []) for token in tokens if token.type == "inline"]
    assert shown in plain, "as a row"
    assert f"{shown}, request after request" in plain
    assert any(part.startswith(f"Protocol incremental (forget cat, {shown})") for part in plain)
    assert any(part.startswith(f"{shown} fails, seed 0: ValueError") for part in plain)


def test_several_lines_of_an_error_are_one(one, results):
    experiment = one(methods=["esc"])
    text = markdown(experiment, results(experiment, {"esc": ["ValueError: first\n  second"]}))
    assert "- esc, seed 0: ValueError: first second" in text


def test_the_strongest_attacker_is_named_of_all_seeds(one, results):
    """Beside a mean over seeds stood the first seed's attacker alone."""

    def attacked(**recalls):
        found = {name: {"recall": value, "false_alarms": 0.0, "retained": 90.0} for name, value in recalls.items()}
        return scores(1, 97, attacks={name.replace("_", "-"): each for name, each in found.items()})

    experiment = one(methods=["esc", {"method": "esc-t", "label": "esc-t", "seeds": [0, 1, 2]}])
    weak, strong = attacked(linear=20.0, knn_l2=10.0), attacked(linear=20.0, knn_l2=60.0)
    text = markdown(experiment, results(experiment, {"esc": [weak], "esc-t": [weak, strong, strong]}))
    assert text.count(": esc: linear, esc-t: knn-l2 (2 of 3 seeds) and linear (1 of 3 seeds).") == 2


def test_memory_that_is_not_known_is_a_dash(one, results):
    experiment = one(methods=["esc"])
    table = markdown(experiment, results(experiment, {"esc": [scores(1, 97)]}, memory_mib={}))
    assert cells(table, "Rest", "esc")["peak MiB"] == "-"
    table = markdown(experiment, results(experiment, {"esc": [scores(1, 97)]}, memory_mib={"gpu_method": 900}))
    assert cells(table, "Rest", "esc")["peak MiB"] == "900", "known where that of the process is not"


def test_the_papers_probe_is_never_printed_without_its_note(one, results):
    experiment = one(methods=["original", "esc"])
    paper = {f"KR_paper {name}": 10.0 for name in ("D_f", "D_r", "HM", "D_ft", "D_rt", "HM_t")}
    with_it = results(experiment, {"original": [scores(90, 97, **paper)], "esc": [scores(1, 97, **paper)]})
    without = results(experiment, {"original": [scores(90, 97)], "esc": [scores(1, 97)]})
    for table in (markdown, latex):
        assert PAPER_NOTE in table(experiment, with_it)
        assert PAPER_NOTE not in table(experiment, without)


def test_rows_of_one_seed_beside_others_are_named_where_a_column_is_drawn_by_the_seed(one, results):
    """The spread of the others holds that of the probe and the attack, which these have too."""
    experiment = one(methods=["original", "esc", {"method": "esc-t", "label": "esc-t", "seeds": [0, 1]}])
    found = {"original": [scores(90, 97)], "esc": [scores(1, 97)], "esc-t": [scores(1, 97), scores(2, 97)]}
    assert "Measured with one seed: original, esc. The ± of" in markdown(experiment, results(experiment, found))
    no_draw = {label: [each | {"MIA": None} for each in of_seeds] for label, of_seeds in found.items()}
    alone = one(methods=["original", "esc"])
    for asked, made in ((experiment, no_draw), (alone, found)):
        assert "Measured with one seed" not in markdown(asked, results(asked, made))


def test_results_of_several_versions_are_named_below_the_tables(one, results):
    experiment = one(methods=["original", {"method": "esc-t", "label": "esc-t", "seeds": [0, 1]}])
    found = {"original": [scores(90, 97)], "esc-t": [scores(1, 97), scores(2, 97)]}
    store = results(experiment, found, versions={"hf-kd": "0.2.0"})
    assert "versions of hf-kd" not in markdown(experiment, store)
    last = list(store.records.values())[-1]
    store.add({**last, "versions": {"hf-kd": "0.1.0"}})
    assert "between which a method may have changed: 0.1.0 (esc-t); 0.2.0 (original, esc-t)." in markdown(
        experiment, store
    )


def test_the_title_of_figures_is_what_they_say_in_short(one, results):
    experiment = one(methods=["original", "esc", {"method": "neggrad", "label": "neggrad"}])
    store = results(experiment, {"original": [scores(90, 97)], "esc": [scores(80, 97)], "neggrad": [scores(70, 90)]})
    rows = lines(experiment, store)
    assert (
        in_short(rows, rows[0]) == "A converged probe reads least of the forgotten after neggrad: 70 % (original 90 %)"
    )
    store = results(experiment, {"original": [scores(90, 97)], "esc": [scores(90, 97)], "neggrad": [scores(95, 90)]})
    told = "A converged probe reads no less of the forgotten after any method: 90 % or more (original 90 %)"
    assert in_short(rows := lines(experiment, store), rows[0]) == told
    store = results(experiment, {"original": [scores(90, 97)], "esc": [scores(70, 97)], "neggrad": [scores(70, 90)]})
    assert "after esc and 1 more: 70 % (original 90 %)" in in_short(rows := lines(experiment, store), rows[0])
    swapped = scores(0, 90) | {"replaced D_ft": 92.0, "replaced D_rt": 23.0}
    experiment = one(methods=["original", "cover"])
    store = results(experiment, {"original": [scores(90, 90)], "cover": [swapped]})
    assert in_short(rows := lines(experiment, store), rows[0]).endswith(
        "0 % (original 90 %); it gives 92 % of them and 23 % of the others features of other images"
    )


def test_the_title_compares_all_that_was_made_and_no_reference(one, results):
    """A model retrained without the forgotten is what to compare with; one made elsewhere is one more method."""
    methods = ["original", "retrain", {"checkpoint": "theirs", "label": "theirs"}, "esc"]
    experiment = one(methods=methods)
    found = {
        "original": [scores(90, 97)],
        "retrain": [scores(40, 97)],
        "theirs": [scores(60, 97)],
        "esc": [scores(70, 9)],
    }
    rows = lines(experiment, results(experiment, found))
    assert in_short(rows, rows[0]) == (
        "A converged probe reads least of the forgotten after theirs: 60 % (original 90 %, a model without it 40 %)"
    )


def test_several_references_are_a_range_in_the_title(one, results):
    methods = ["original", "esc", *({"method": "retrain", "epochs": i, "label": f"retrain {i}"} for i in (1, 2, 3))]
    experiment = one(methods=methods)
    found = {"original": [scores(90, 97)], "esc": [scores(70, 97)]}
    found |= {f"retrain {i}": [scores(value, 97)] for i, value in ((1, 42), (2, 40), (3, 55))}
    rows = lines(experiment, results(experiment, found))
    assert in_short(rows, rows[0]).endswith("after esc: 70 % (original 90 %, a model without it 40 to 55 %)")


def test_the_title_without_a_method_has_what_was_read_all_the_same(one, results):
    experiment = one(methods=["original", "retrain"])
    rows = lines(experiment, results(experiment, {"original": [scores(90, 97)], "retrain": [scores(40, 97)]}))
    assert in_short(rows, rows[0]) == (
        "A converged probe reads of the forgotten: original 90 %, a model without it 40 %"
    )


def test_a_figure_of_other_rows_does_not_stay(one, results, tmp_path):
    pytest.importorskip("matplotlib")
    experiment = one(methods=["original", "esc"])
    (tmp_path / "attackers.png").touch()
    (tmp_path / "mine.png").touch()
    drawn = draw(experiment, results(experiment, {"original": [scores(90, 97)], "esc": [scores(80, 97)]}), tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {path.name for path in drawn} | {"mine.png"}
    assert "attackers.png" not in {path.name for path in drawn}


def test_lines_know_what_is_missing(one, results):
    experiment = one(methods=[{"method": "esc-t", "seeds": [0, 1, 2, 3]}])
    (line,) = lines(experiment, results(experiment, {"esc-t": [scores(1, 97), "ValueError: no", scores(3, 97)]}))
    assert (len(line.records), len(line.failed), line.missing) == (2, 1, 1)
    assert line.values("D_f") == [1, 3]
    assert line.mean("D_f") == 2
    assert line.mean("nothing") is None


@pytest.fixture
def many(one, results):
    """Thirty rows whose points nearly coincide, with long labels."""
    methods = [
        "original",
        *({"method": "neggrad", "label": f"a method with a long name, number {i}"} for i in range(29)),
    ]
    experiment = one(methods=methods)
    layers = {f"encoder.block.{i}": 10.0 ** -(i % 5) for i in range(12)}
    moved = {"weights head": 0.1, "weights other": 0.2, "weights by layer": layers}
    found = {
        row.label: [scores(90 - i / 50, 90 + i / 90, **(moved if i else {}))] for i, row in enumerate(experiment.rows)
    }
    return experiment, results(experiment, found)


@pytest.mark.filterwarnings("error:.*layout")
@pytest.mark.parametrize("count", [1, 2])
def test_every_figure_is_drawn_and_few_rows_leave_space_for_titles_and_captions(one, results, tmp_path, count):
    pytest.importorskip("matplotlib")
    labels = ["a method with a name of many words", "another"][:count]
    experiment = one(methods=["original", *({"method": "esc", "k": 1 + i, "label": f} for i, f in enumerate(labels))])
    moved = {"weights head": 1.0, "weights other": 1.0, "weights by layer": {"layer": 1.0}, "KR_paper D_ft": 20.0}
    found = {"original": [scores(90, 90)]} | {label: [scores(80, 90, **moved)] for label in labels}
    written = draw(experiment, results(experiment, found), tmp_path / "figures")
    assert [path.stem for path in written] == ["recovery", "weights", "weights_by_layer", "time", "pareto"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_rows_that_were_not_run_are_named_below_the_tables_and_not_in_them(one, results):
    experiment = one(methods=["original", "esc", "esc-t"])
    store = results(experiment, {"original": [scores(99, 98)]})
    text = markdown(experiment, store)
    assert "| original |" in text
    assert "| esc" not in text
    assert "Not run yet: esc (1), esc-t" in text
    assert "esc" not in latex(experiment, store)
    experiment = one(methods=["mean-projection"])
    nothing = markdown(experiment, results(experiment, {}))
    assert "|" not in nothing.split("Not run yet")[0], "no table of no rows"


def test_no_name_covers_another_or_a_point(many):
    pytest.importorskip("matplotlib")
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    from hf_kd.audit.plotting import STYLE
    from hf_kd.bench.figures import FIGURES

    rows = lines(*many)
    for name in ("pareto", "recovery", "time", "weights", "weights_by_layer"):
        with rc_context(STYLE):
            figure = FIGURES[name](rows, rows[0], Figure)
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
        axes = figure.axes[0]
        texts = (
            [text for text in axes.texts if text.get_text() != "better"] if name == "pareto" else axes.get_yticklabels()
        )
        assert len(texts) >= 29
        # an annotation's own extent would hold the line to its point too
        boxes = [Text.get_window_extent(text, canvas.get_renderer()) for text in texts]
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i]), name
            assert box.x0 >= 0, "inside the figure"
            assert box.x1 <= figure.bbox.width
        if name == "pareto":
            assert min(box.x0 for box in boxes) > axes.get_window_extent().x1, "beside the points"


def test_without_numbers_there_is_no_figure(one, results, tmp_path):
    pytest.importorskip("matplotlib")
    experiment = one(methods=["original"])
    assert draw(experiment, results(experiment, {}), tmp_path / "figures") == []
