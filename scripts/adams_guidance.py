# Reached: never worse than Euler; at w > 1 at most 1.2 times the best of Euler, Heun and DPM++ 2M
# but for 8 Gaussians and 5 questions (condot, w = 1.5: 1.30; edm, w = 7: 1.23).
"""Adams under classifier-free guidance, against other solvers at equal price, as a table.

python scripts/adams_guidance.py [TARGET ...] [PATH ...]    all of both if none is named

Asked: questions to the guided field; at w != 1 each costs two evaluations, so 10 evaluations are
5 of them and 10 steps 10. Error: RMS distance to the fine solution of the same ODE. Ratio: to
the best of Euler, Heun and DPM-Solver++ 2M, at w = 1 to the classical method; ! beyond 1.2 (at
w > 1) or Euler.
"""

import sys

import targets
import torch

from fmdiff.build import named

SCALES = (1.0, 1.5, 3.0, 7.0)
OTHERS = ("euler", "heun", "dpmpp_2m")


def asked(w: float) -> tuple[int, ...]:
    """10, 20 and 50 evaluations, and as many steps."""
    return (10, 20, 50) if w == 1 else (5, 10, 20, 25, 50)


def cell(case: targets.Case, questions: int) -> dict[str, float]:
    solvers = {name: named("solver", name) for name in (*OTHERS, "adams")}
    solvers["classical"] = named("solver", "adams", weigh=False)
    return {name: targets.error(case, solver, questions) for name, solver in solvers.items()}


def verdict(w: float, errors: dict[str, float]) -> tuple[float, bool]:
    """The ratio, and whether it keeps the bounds."""
    best = errors["classical"] if w == 1 else min(errors[name] for name in OTHERS)
    ratio = errors["adams"] / best
    return ratio, (w == 1 or ratio <= 1.2) and errors["adams"] <= errors["euler"]


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    print("| target | path | w | asked | euler | heun | dpmpp_2m | classical | adams | ratio |")
    print("|" + "---|" * 10)
    for target in [t for t in targets.TARGETS if t in words] or targets.TARGETS:
        for path in [p for p in targets.PATHS if p in words] or targets.PATHS:
            for w in SCALES:
                case = targets.case(target, path, w)
                for questions in asked(w):
                    errors = cell(case, questions)
                    ratio, kept = verdict(w, errors)
                    order = (*OTHERS, "classical", "adams")
                    figures = " | ".join(f"{errors[name]:.2e}" for name in order)
                    shown = f"{ratio:.2f}" + ("" if kept else " !")
                    print(f"| {target} | {path} | {w:g} | {questions} | {figures} | {shown} |")
                    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
