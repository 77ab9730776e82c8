"""Runs a command as a user does, in this process."""

from __future__ import annotations

from typer.testing import CliRunner

from hf_kd.cli import app


def hf_kd(*arguments, code: int = 0):
    """The command in this process; what it prints comes back as .stdout and .stderr."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    unexpected = done.exception if not isinstance(done.exception, SystemExit) else None
    assert unexpected is None, repr(unexpected)
    assert done.exit_code == code, done.output
    return done
