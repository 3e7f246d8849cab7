"""Rows 26 to 50: disk, memory, processes, data, references, paths and clock."""

import faults
from faults import INCEPTION, OF_FILES, SAMPLE, SIZE, TRAIN, UNET, Case, Row

ROWS = (
    Row(
        26,
        "a disk that is full when a checkpoint is written",
        (
            Case(
                f"{TRAIN} trainer.max_steps=60 trainer.checkpoint_every=20 out=new",
                0,
                (
                    "step 20 was not saved, the last one is kept: [Errno 28] No space left on",
                    "60 steps done",
                ),
                None,
                faults.full_once,
                "at step 20 there is no room",
            ),
            Case(
                "fmdiff train resume=moons trainer.max_steps=200",
                1,
                (
                    "step 80 was not saved, the last one is kept: [Errno 27] File too large",
                    "no picture at step 200: [Errno 27] File too large",
                    "what was to be written could not be: File too large; moons/0000060.ckpt is "
                    "kept: go on with fmdiff train resume=moons",
                ),
                None,
                lambda patch: faults.small_files(),
                "no file can grow beyond 40 kB",
            ),
            Case(
                "unshare -rm bash -c 'mkdir disk && mount -t tmpfs -o size=400k tmpfs disk && "
                f"{TRAIN} trainer.max_steps=300 trainer.checkpoint_every=20 trainer.keep=null "
                "out=disk/run; code=$?; fmdiff info ckpt=disk/run | head -2; exit $code'",
                1,
                (
                    "was not saved, the last one is kept: [Errno 28] No space left on device",
                    "what was to be written could not be: No space left on device; disk/run/",
                    "step  ",
                ),
                how="a disk of 400 kB",
            ),
        ),
        tests=("test_checkpoint::test_a_full_disk_leaves_the_old_file_and_says_why",),
    ),
    Row(
        27,
        "kill -9 while a checkpoint is written",
        tests=(
            "test_checkpoint::test_thirty_kills",
            "test_processes::test_killed_in_mid_run_the_same_command_ends_bit_identically",
        ),
    ),
    Row(
        28,
        "SIGTERM and Ctrl-C, to any process of a run",
        (
            Case(
                f"{TRAIN} trainer.checkpoint_every=100 trainer.max_steps=1000000 out=new & "
                "until [ -f new/0000100.ckpt ]; do sleep 0.1; done; kill -TERM $!; wait $!",
                143,
                ("stopped by SIGTERM after step", "go on with fmdiff train resume=new"),
            ),
        ),
        tests=(
            "test_training::test_a_signal_saves_and_the_rest_is_bit_identical",
            "test_processes::test_a_signal_at_any_step_saves_and_the_rest_is_bit_identical",
        ),
    ),
    Row(29, "a process of a run dies", tests=("test_processes",)),
    Row(
        30,
        "a loss that is not finite",
        (
            Case(
                f"{TRAIN} optim.lr=1e30 trainer.clip=null out=new",
                3,
                (
                    "step 1 (seed 0): loss ",
                    "is not finite; earlier checkpoints are kept. Try a smaller optim.lr",
                ),
            ),
        ),
        tests=(
            "test_training::test_a_loss_that_is_not_finite_ends_the_run",
            "test_training::test_some_steps_may_be_skipped",
        ),
    ),
    Row(
        31,
        "no memory left on the device",
        (
            Case(
                "fmdiff train resume=moons trainer.max_steps=100",
                1,
                (
                    "the CUDA device is out of memory, 2.50 GiB more were needed; try a smaller "
                    "data.batch_size, trainer.accumulate=2 (the same batch in two parts), "
                    "trainer.precision=bf16 or trainer.recompute=true; moons/0000060.ckpt is kept",
                ),
                None,
                faults.no_memory,
                "torch.OutOfMemoryError in step 75",
            ),
            Case(
                "fmdiff train resume=moons trainer.max_steps=62 trainer.accumulate=2",
                0,
                ("trainer.accumulate: 1 (saved) vs 2 (now)", "62 steps done"),
            ),
        ),
    ),
    Row(
        32,
        "a data set that is absent, without a network",
        (
            Case(
                f"fmdiff train data=mnist data.root=data {UNET}",
                2,
                (
                    "data=mnist: data/MNIST/raw lacks some of train-images-idx3-ubyte",
                    "and the download failed",
                    "train-images-idx3-ubyte.gz (md5 f68b3c2dcbeaaa9fbdd348bbdeb94873)",
                    "from https://",
                    "into data/MNIST/raw",
                    "choose data=digits, which needs no download",
                ),
                None,
                faults.no_network,
                "every connection is refused",
            ),
        ),
        tests=("test_data_files::test_missing_data_without_a_network",),
    ),
    Row(
        33,
        "a file of a data set that is damaged",
        (
            Case(
                f"fmdiff train data=mnist data.root=data {UNET}",
                2,
                (
                    "data/MNIST/raw/train-images-idx3-ubyte is damaged (expected 47,040,016 bytes "
                    "with md5 6bbc9ace898e44ae57da46a324031adb, found 47,040,016 bytes with md5",
                    "delete it and it is fetched again",
                ),
                faults.mnist_of_zeros,
                None,
                "files of the right sizes, all zeros",
            ),
        ),
        tests=("test_data_files::test_a_damaged_mnist_file_is_named",),
    ),
    Row(
        34,
        "a batch larger than the data set",
        (
            Case(
                f"fmdiff train data=digits {UNET} data.batch_size=1600 trainer.max_steps=1 "
                "threads=1",
                0,
                ("1 steps done",),
            ),
        ),
        "No image is ever dropped: a batch goes on into the next epoch, so this is no error.",
        ("test_randomness::test_training_steps_walk_through_the_epochs_without_loss",),
    ),
    Row(
        35,
        "a GPU that is not there",
        (
            Case(f"{TRAIN} device=cuda", 2, ("device=cuda: this machine has 0 CUDA devices",)),
            Case(f"{SAMPLE} device=cuda:1", 2, ("choose device=cpu or device=auto",)),
            Case(f"{TRAIN} trainer.max_steps=1 out=new", 0, ("parameters, on cpu; writing to",)),
        ),
        "device=auto, the default, takes a GPU where there is one; what it took is said.",
    ),
    Row(
        36,
        "a precision that the device has not",
        (
            Case(
                f"{TRAIN} trainer.precision=16-mixed",
                2,
                ("trainer.precision=16-mixed: must be fp32 or tf32 or bf16 or fp16",),
            ),
            Case(
                f"{TRAIN} trainer.precision=fp16 device=cpu",
                2,
                ("trainer.precision=fp16 needs a CUDA device: choose fp32 or bf16",),
            ),
        ),
    ),
    Row(
        37,
        "more devices than there are",
        (
            Case(
                f"{TRAIN} device=cuda trainer.devices=2",
                2,
                ("trainer.devices=2: this machine has 1 CUDA devices; choose that many",),
                None,
                faults.one_gpu,
                "a machine with one GPU",
            ),
        ),
    ),
    Row(
        38,
        "a Frechet distance of too few samples",
        (
            Case(
                f"{OF_FILES} samples=one.npz against=real.npz",
                2,
                ("samples=one.npz holds 1 sample, and a metric needs 2 at least",),
                faults.images,
            ),
            Case(
                f"{OF_FILES} samples=made.npz against=one.npz",
                2,
                ("against=one.npz holds one sample, and a metric needs 2 at least",),
            ),
            Case(
                f"{OF_FILES} samples=made.npz against=real.npz",
                0,
                (
                    "n=20 samples of 96 dimensions: the covariance is rank-deficient",
                    "only features=inception gives FID",
                ),
            ),
        ),
        "The warning is in results.json too.",
        ("test_frechet",),
    ),
    Row(
        39,
        "FID without Inception's weights, or with others",
        (
            Case(
                f"{INCEPTION} metrics=[fid]",
                2,
                (f"features=inception needs FID's Inception weights ({SIZE}, sha256 6726825d",),
                faults.images,
            ),
            Case(
                f"{INCEPTION} metrics=[fid] features.weights=other.pth",
                2,
                ("other.pth has 1,000 bytes with sha256 541b3e9d", f"({SIZE}, sha256 6726825d"),
            ),
            Case(
                f"{INCEPTION} metrics=[fid] features.weights=none.pth",
                2,
                ("features.weights=none.pth is not a file; it should be FID's",),
            ),
            Case(
                f"{INCEPTION} metrics=[fid] features.download=true",
                2,
                ("could not be fetched to", "give it as features.weights=PATH"),
                None,
                faults.no_network,
                "every connection is refused",
            ),
        ),
        tests=(
            "test_inception::test_another_file_is_refused_with_both_hashes",
            "test_inception::test_a_download_of_other_bytes_leaves_nothing",
        ),
    ),
    Row(
        40,
        "FID of images of another kind",
        (
            Case(
                f"{OF_FILES} samples=floats.npz against=real.npz",
                2,
                (
                    "samples=floats.npz holds arr_0 of float32 (40, 28, 28, 1): images are uint8 "
                    "(N, H, W, 1 or 3)",
                ),
                faults.images,
            ),
        ),
        "Samples are turned to pixels by fmdiff, clamped and rounded; grey images are repeated to "
        "three channels for Inception. Only files can be of another kind.",
        (
            "test_inception::test_grey_images_are_repeated",
            "test_inception::test_wrong_shapes_are_refused",
        ),
    ),
    Row(
        41,
        "a reference of another size, split or extractor",
        (
            Case(
                f"{OF_FILES} samples=made.npz against=rgb.npz",
                2,
                ("against=rgb.npz is data of shape [3, 32, 32], and the samples have",),
                faults.images,
            ),
            Case(
                f"{OF_FILES} samples=made.npz against=few_dims.npz",
                2,
                ("few_dims.npz holds statistics of 64 dimensions, and mnist gives 96",),
            ),
            Case(
                f"{OF_FILES} samples=made.npz against=inception.npz",
                2,
                ("holds statistics of extractor=inception, and extractor=mnist is wanted",),
            ),
            Case(
                f"{OF_FILES} samples=made.npz against=mnist:val",
                2,
                ("mnist has no split 'val'; choose mnist:train or mnist:test",),
            ),
        ),
        tests=("test_reference::test_another_thing_is_refused",),
    ),
    Row(
        42,
        "an SDE for a model whose source is not normal",
        (
            Case(
                "fmdiff sample ckpt=eight n=4 solver=ddpm",
                2,
                (
                    "a stochastic solver needs a normal source independent of x, and this model "
                    "was trained with another source or coupling; choose one of an ODE",
                ),
            ),
            Case("fmdiff sample ckpt=eight n=4 steps=2 solver=heun", 0, ("4 evaluations each",)),
        ),
        tests=("test_combinations::test_what_a_checkpoint_tells_is_refused",),
    ),
    Row(
        43,
        "the score at an end of the path, where it is infinite",
        (
            Case(
                f"{SAMPLE} solver=euler_maruyama steps=10 coordinates=native",
                0,
                ("10 evaluations per sample counted",),
            ),
            Case(
                "fmdiff sample model=exact data=gmm4 path=vp n=4 solver=ddpm steps=10",
                0,
                ("10 evaluations per sample counted",),
            ),
        ),
        "A field says where it may be asked, and a diffusion that is infinite at the start is "
        "left out there; samples that are not finite are an error in any case.",
        (
            "test_solvers::test_an_infinite_diffusion_at_the_start_is_left_out",
            "test_stochastic::test_the_last_step",
        ),
    ),
    Row(
        44,
        "optimal transport of one sample, and of a million",
        (
            Case(
                "fmdiff train model.hidden=16 coupling=ot data.batch_size=1 trainer.max_steps=2 "
                "out=new",
                0,
                ("2 steps done",),
            ),
            Case(
                "fmdiff train coupling=ot data.batch_size=1000000",
                2,
                (
                    "data.batch_size=1000000: to pair 1,000,000 samples takes 24,000 GB, and this "
                    "machine has",
                    "choose a smaller one, or coupling=independent",
                ),
            ),
        ),
    ),
    Row(
        45,
        "a sweep of runs of several processes",
        tests=("test_processes::test_a_sweep_of_two_processes_each_goes_on_after_a_failure",),
    ),
    Row(46, "a start by torchrun", tests=("test_processes",)),
    Row(
        47,
        "spaces, brackets, equals signs and other letters in paths",
        (
            Case(
                """fmdiff sample 'ckpt="my runs/a=b (1)/é"' n=4 steps=2 'out="my samples"'""",
                0,
                ("using my runs/a=b (1)/é/0000060.ckpt", "my samples/samples.npz"),
                faults.odd_names,
            ),
            Case(
                """fmdiff train 'resume="my runs/a=b (1)/é"' trainer.max_steps=61""",
                0,
                ("""next: fmdiff sample 'ckpt="my runs/a=b (1)/é"'""",),
            ),
            Case(
                "fmdiff sample 'ckpt=my runs/a=b (1)/é' n=4",
                0,
                ("ckpt=my runs/a=b (1)/é: using my runs/a=b (1)/é/0000061.ckpt",),
            ),
        ),
    ),
    Row(
        48,
        "nobody to read what is printed",
        (
            Case(
                f"set -o pipefail; {SAMPLE} steps=2 | true",
                141,
                ("ckpt=moons: using moons/0000060.ckpt",),
            ),
            Case("fmdiff info ckpt=moons >&-", 0, ("ckpt=moons: using",)),
            Case(
                "fmdiff info ckpt=moons >/dev/full",
                1,
                ("what was to be written could not be: No space left on device",),
            ),
            Case(
                f"NO_COLOR=1 {TRAIN} trainer.max_steps=1 out=new 2>&1 | cat",
                0,
                ("step 1/1: loss", "1 steps done"),
            ),
        ),
        "141 is how a shell is told that a pipe was closed. A file or a pipe gets plain lines, a "
        "terminal a progress bar; there are no colours.",
        (
            "test_commands::test_a_file_gets_plain_lines",
            "test_commands::test_a_terminal_gets_a_bar",
        ),
    ),
    Row(
        49,
        "a Python that the libraries do not support yet",
        (
            Case(
                "python -c 'from importlib.metadata import metadata; "
                """print(metadata("fmdiff")["Requires-Python"])'""",
                0,
                ("<3.14,>=3.11",),
            ),
        ),
        "pip refuses to install fmdiff where this does not hold; nothing is looked at afterwards.",
    ),
    Row(
        50,
        "two starts in one second",
        (
            Case(
                f"{TRAIN} trainer.max_steps=1",
                0,
                ("writing to outputs/moons-condot-mlp/2026-01-31_12-00-00",),
                None,
                faults.stopped_clock,
                "the clock stands still",
            ),
            Case(
                f"{TRAIN} trainer.max_steps=1",
                0,
                ("writing to outputs/moons-condot-mlp/2026-01-31_12-00-00-2",),
                None,
                faults.stopped_clock,
                "the clock stands still",
            ),
        ),
        tests=("test_run::test_runs_that_start_in_one_second_get_their_own_folders",),
    ),
)
