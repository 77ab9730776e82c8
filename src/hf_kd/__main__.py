"""`python -m hf_kd` is `hf-kd`; `accelerate launch -m hf_kd` runs it in several processes."""

from .cli import main

if __name__ == "__main__":
    main()
