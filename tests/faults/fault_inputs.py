"""Rows 1 to 25: what is typed, and the runs and checkpoints that are named."""

import faults
from faults import SAMPLE, TRAIN, UNET, Case, Row

ROWS = (
    Row(
        1,
        "a solver that does not exist",
        (
            Case(
                f"{SAMPLE} solver=hune",
                2,
                ("unknown solver 'hune'; did you mean 'heun'? Choose from: adams, ddpm",),
            ),
            Case(f"{SAMPLE} solver=foo", 2, ("unknown solver 'foo'; choose from: adams, ddpm",)),
        ),
    ),
    Row(
        2,
        "a misspelt group",
        (Case("fmdiff train pth=condot", 2, ("unknown key 'pth'; did you mean 'path'?",)),),
    ),
    Row(
        3,
        "a misspelt key of a group",
        (
            Case(
                "fmdiff train model.hiddn=3",
                2,
                ("unknown key 'model.hiddn' of model=mlp; did you mean 'model.hidden'?",),
            ),
        ),
    ),
    Row(
        4,
        "steps that are no integer",
        (
            Case(f"{SAMPLE} steps=abc", 2, ("steps=abc: must be an integer >= 1",)),
            Case(f"{SAMPLE} steps=2.5", 2, ("steps=2.5: must be an integer >= 1",)),
        ),
    ),
    Row(
        5,
        "no steps",
        (
            Case(f"{SAMPLE} steps=0", 2, ("steps=0: must be an integer >= 1",)),
            Case(f"{SAMPLE} steps=-1", 2, ("steps=-1: must be an integer >= 1",)),
        ),
    ),
    Row(
        6,
        "one step of a solver of higher order",
        (
            Case(f"{SAMPLE} solver=heun steps=1", 0, ("2 evaluations per sample counted",)),
            Case(f"{SAMPLE} solver=dpmpp_2m steps=1", 0, ("1 evaluations per sample counted",)),
        ),
        tests=("test_solvers::test_price_is_what_is_counted",),
    ),
    Row(
        7,
        "an odd number of evaluations for a solver of two per step",
        (
            Case(f"{SAMPLE} solver=heun nfe=27", 0, ("13 steps", "26 evaluations each")),
            Case(
                "fmdiff sample model=exact data=gmm4 path=edm n=4 solver=heun nfe=27",
                0,
                ("14 steps", "a jump to the estimate of x, 27 evaluations each"),
            ),
            Case(f"{SAMPLE} solver=heun nfe=1", 2, ("nfe=1: one step costs 2 evaluations",)),
        ),
        "nfe= is what may be spent at most, so an odd number is no error: the plan says what it "
        "costs. On a path that ends with noise the last step is one evaluation, and heun spends "
        "2 steps - 1 as in EDM.",
    ),
    Row(
        8,
        "steps of a solver that chooses its own",
        (
            Case(
                f"{SAMPLE} solver=dopri5 steps=28",
                2,
                ("steps=28: Dopri5 chooses its own by solver.rtol and solver.atol",),
            ),
            Case(f"{SAMPLE} solver=dopri5 nfe=28", 2, ("nfe=28: an adaptive solver chooses",)),
        ),
        "With trajectory=true the steps are the frames of the animation, and are taken.",
    ),
    Row(
        9,
        "a tolerance of nothing",
        (
            Case(
                f"{SAMPLE} solver=dopri5 solver.rtol=0 solver.atol=0",
                2,
                ("solver.rtol=0: must be a number > 0",),
            ),
            Case(f"{SAMPLE} solver=dopri5 solver.rtol=nan", 2, ("solver.rtol=nan: must be a",)),
            Case(f"{SAMPLE} solver=dopri5 solver.max_nfe=0", 2, ("solver.max_nfe=0: must be an",)),
        ),
    ),
    Row(
        10,
        "an adaptive solver that does not arrive",
        (
            Case(
                f"{SAMPLE} solver=dopri5 solver.rtol=1e-12 solver.atol=1e-12 solver.max_nfe=200",
                1,
                (
                    "solver.max_nfe=200 evaluations do not reach t=1: at t=0.",
                    "the steps are",
                    "raise it, or solver.rtol=1e-12 and solver.atol=1e-12",
                ),
            ),
        ),
    ),
    Row(
        11,
        "guidance of a model without classes",
        (
            Case(
                f"{SAMPLE} guidance=cfg guidance.w=4",
                2,
                ("guidance=cfg needs a model trained with classes",),
            ),
        ),
    ),
    Row(
        12,
        "classes that do not exist",
        (
            Case("fmdiff sample ckpt=digits classes=[10]", 2, ("classes=[10] must lie in 0..9",)),
            Case("fmdiff sample ckpt=digits classes=[-1]", 2, ("classes=[-1]: must be a class",)),
            Case("fmdiff sample ckpt=digits classes=[]", 2, ("classes=[]: must be a class",)),
        ),
    ),
    Row(
        13,
        "no samples, no batch, and a last batch that is smaller",
        (
            Case("fmdiff sample ckpt=moons n=0", 2, ("n=0: must be an integer >= 1",)),
            Case(f"{SAMPLE} batch_size=0", 2, ("batch_size=0: must be an integer >= 1",)),
            Case("fmdiff train data.batch_size=0", 2, ("data.batch_size=0: must be an integer",)),
            Case("fmdiff sample ckpt=moons n=10 batch_size=4 steps=2", 0, ("10 samples",)),
        ),
        tests=("test_commands::test_samples_do_not_depend_on_the_batch_size",),
    ),
    Row(
        14,
        "a checkpoint that does not exist",
        (
            Case(
                "fmdiff sample ckpt=moons/0000061.ckpt",
                2,
                (
                    "ckpt=moons/0000061.ckpt does not exist",
                    "checkpoints nearby: moons/0000060.ckpt",
                ),
            ),
        ),
        tests=("test_checkpoint::test_what_is_not_found_lists_what_is_near",),
    ),
    Row(
        15,
        "a run folder for a checkpoint",
        (Case(f"{SAMPLE} steps=2", 0, ("ckpt=moons: using moons/0000060.ckpt (step 60)",)),),
    ),
    Row(
        16,
        "a checkpoint cut short, empty, or a text",
        (
            Case(
                "fmdiff sample ckpt=cut.ckpt",
                2,
                ("checkpoint cut.ckpt is damaged: it was cut short (it ends after",),
                faults.damaged,
            ),
            Case("fmdiff sample ckpt=empty.ckpt", 2, ("empty.ckpt is damaged: it was cut short",)),
            Case("fmdiff info ckpt=text.ckpt", 2, ("text.ckpt is damaged: its 21 bytes are no",)),
        ),
        tests=("test_checkpoint::test_truncation_is_named",),
    ),
    Row(
        17,
        "a flipped bit in a checkpoint",
        (
            Case(
                "fmdiff sample ckpt=flip.ckpt",
                2,
                ("flip.ckpt is damaged: tensor '", "' does not match its checksum"),
                faults.damaged,
                None,
                "one bit of its largest tensor is flipped",
            ),
        ),
        tests=(
            "test_checkpoint::test_no_flipped_byte_gives_other_content",
            "test_checkpoint::test_a_flip_in_a_tensor_names_the_tensor",
        ),
    ),
    Row(
        18,
        "code in a checkpoint",
        (
            Case(
                "fmdiff sample ckpt=code.ckpt",
                2,
                ("code.ckpt is refused: it asks for code to be run (posix.system)",),
                faults.foreign,
                None,
                "to be unpickled it would run a command",
            ),
            Case("fmdiff train init=code.ckpt", 2, ("code.ckpt is refused: it asks for code",)),
            Case("fmdiff info ckpt=code.pkl", 2, ("code.pkl is damaged: its",)),
        ),
        tests=("test_checkpoint::test_code_in_a_checkpoint_is_never_run",),
    ),
    Row(
        19,
        "a checkpoint of another program, or of a later format",
        (
            Case(
                "fmdiff sample ckpt=other.ckpt",
                2,
                (
                    "other.ckpt is not an fmdiff checkpoint",
                    "it holds keys ['state_dict', 'epoch']",
                ),
                faults.foreign,
            ),
            Case(
                "fmdiff info ckpt=newer.ckpt",
                2,
                ("newer.ckpt was written by a newer fmdiff (format version 2, this is 1)",),
            ),
        ),
        tests=("test_checkpoint::test_files_of_other_programs",),
    ),
    Row(
        20,
        "going on with another network",
        (
            Case(
                "fmdiff train resume=moons model.hidden=32",
                2,
                ("moons is a run of other settings: model.hidden: 16 (saved) vs 32 (now)",),
            ),
            Case(
                "fmdiff train resume=moons model.hidden=32 trainer.max_steps=80 overwrite=true",
                2,
                ("weights do not fit model=mlp: model.hidden: 16 (saved) vs 32 (now)",),
            ),
            Case(
                f"fmdiff train init=moons data=digits {UNET}",
                2,
                ("do not fit model=unet: model._target_: fmdiff.models.mlp.MLP (saved)",),
            ),
        ),
    ),
    Row(
        21,
        "going on with other settings",
        (
            Case(
                "fmdiff train resume=moons optim.lr=1e-4 trainer.max_steps=61",
                0,
                ("resuming moons with optim.lr: 0.001 (saved) vs 0.0001 (now)", "61 steps"),
            ),
            Case(
                "fmdiff train resume=moons trainer.max_steps=62 data.batch_size=32",
                2,
                ("other settings: data.batch_size: 64 (saved) vs 32 (now)",),
            ),
            Case("fmdiff train resume=moons seed=1", 2, ("seed: 0 (saved) vs 1 (now)",)),
            Case("fmdiff train resume=moons path=vp", 2, ("path._target_: fmdiff.path.CondOT",)),
            Case("fmdiff train resume=moons data=rings", 2, ("fmdiff.data.toy.Rings (now)",)),
            Case(
                "fmdiff train resume=moons trainer.max_steps=62 data.batch_size=32 overwrite=true",
                0,
                ("data.batch_size: 64 (saved) vs 32 (now)", "62 steps done"),
            ),
        ),
    ),
    Row(
        22,
        "going on with a run that has ended",
        (
            Case("fmdiff train resume=moons", 0, ("moons has its 60 steps already; raise",)),
            Case("fmdiff train resume=moons trainer.max_steps=62", 0, ("62 steps done",)),
        ),
    ),
    Row(
        23,
        "a newest checkpoint that is damaged",
        (
            Case(
                f"{TRAIN} trainer.max_steps=60 trainer.checkpoint_every=40 out=moons resume=last",
                0,
                (
                    "is damaged: it was cut short",
                    "falling back to moons/0000040.ckpt",
                    "resuming moons/0000040.ckpt at step 40",
                    "60 steps done",
                ),
                faults.newest_broken,
                None,
                "0000060.ckpt, last.ckpt, last-v1.ckpt are cut",
            ),
        ),
        tests=("test_checkpoint::test_newest_good_goes_by_step_and_falls_back",),
    ),
    Row(
        24,
        "two runs in one folder",
        (
            Case(f"{TRAIN} out=moons", 2, ("out=moons holds a run already: resume=true goes on",)),
            Case(
                "fmdiff train resume=moons",
                2,
                ("moons is in use by process", "wait for it or choose another"),
                None,
                lambda patch: faults.held(),
                "another process trains in it",
            ),
        ),
        "The system itself lets go of the lock when its process ends, however it ends.",
        ("test_run::test_one_run_at_a_time", "test_run::test_a_killed_run_lets_go"),
    ),
    Row(
        25,
        "a folder that cannot be written to",
        (
            Case(
                f"{TRAIN} out=file/run",
                2,
                ("out=file/run cannot be written to: Not a directory",),
                faults.in_the_way,
            ),
            Case(f"{SAMPLE} out=/proc/samples", 2, ("out=/proc/samples cannot be written to",)),
        ),
        tests=("test_run::test_unwritable",),
    ),
)
