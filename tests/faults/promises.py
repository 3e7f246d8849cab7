"""What fmdiff promises, in plain sentences, and the tests that try each promise."""

from typing import NamedTuple


class Promise(NamedTuple):
    title: str
    text: str
    tests: tuple[str, ...]


PROMISES = (
    Promise(
        "An interruption loses nothing.",
        "Stop a training at any step with Ctrl-C or SIGTERM, or close its terminal. It saves, and "
        "when you resume it, it ends with the same weights, averages, optimiser state, figures "
        "and pictures as a run that nobody stopped, bit for bit, in one process or several.",
        (
            "test_training::test_a_signal_saves_and_the_rest_is_bit_identical",
            "test_processes::test_a_signal_at_any_step_saves_and_the_rest_is_bit_identical",
        ),
    ),
    Promise(
        "A crash never costs the last checkpoint.",
        "kill -9, a power cut or a full disk may cost the steps since the last checkpoint. The "
        "checkpoint itself stays whole, because a new file takes the place of the old one only "
        "when it is complete and on the disk.",
        (
            "test_checkpoint::test_thirty_kills",
            "test_checkpoint::test_a_full_disk_leaves_the_old_file_and_says_why",
            "test_processes::test_killed_in_mid_run_the_same_command_ends_bit_identically",
        ),
    ),
    Promise(
        "A damaged file is never used.",
        "fmdiff checks every byte of a checkpoint before it loads it. If one bit is wrong, it "
        "says which file is damaged and how. resume=last then takes the newest checkpoint that "
        "is whole, and says so.",
        (
            "test_checkpoint::test_truncation_is_named",
            "test_checkpoint::test_no_flipped_byte_gives_other_content",
            "test_checkpoint::test_newest_good_goes_by_step_and_falls_back",
        ),
    ),
    Promise(
        "A file from someone else is data.",
        "A checkpoint, run folder, result file, picture or weight file that you were sent cannot "
        "run code, cannot make fmdiff read or write anything outside its own folder, and cannot "
        "send control characters to your terminal.",
        (
            "test_checkpoint::test_code_in_a_checkpoint_is_never_run",
            "test_commands::test_code_named_by_a_checkpoint_is_not_run",
            "test_reference::test_pickles_are_refused_and_not_run",
            "test_inception::test_a_saved_object_is_refused_and_not_run",
        ),
    ),
    Promise(
        "A sample depends on its seed and its number alone.",
        "Sample 7 of seed 0 starts from the same noise in a batch of 1 and in a batch of 1,000. "
        "What comes out agrees within 1e-4, and within one level of a pixel in a thousand.",
        (
            "test_commands::test_samples_do_not_depend_on_the_batch_size",
            "test_randomness::test_a_row_of_noise_depends_on_its_index_alone",
        ),
    ),
    Promise(
        "A training that breaks down stops.",
        "A loss or gradient that is not finite ends the run with exit code 3. The message names "
        "the step and the seed, and the checkpoints before that step stay. If you prefer, "
        "trainer.skip_nonfinite=N passes over up to N such steps.",
        (
            "test_training::test_a_loss_that_is_not_finite_ends_the_run",
            "test_training::test_some_steps_may_be_skipped",
        ),
    ),
    Promise(
        "A solver does what its name says.",
        "Each solver converges with the order it declares and costs the evaluations it announces. "
        "Each SDE keeps the distribution at every time.",
        (
            "test_solvers::test_measured_order",
            "test_exponential::test_measured_order",
            "test_stochastic::test_weak_order",
            "test_stochastic::test_every_sde_keeps_the_marginals",
            "test_solvers::test_price_is_what_is_counted",
        ),
    ),
    Promise(
        "A mistake gets one clear sentence.",
        "The sentence names the option and the valid choices. The exit code is 2, no file is "
        "written, and there is no traceback.",
        ("test_cli::test_exit_code", "test_faults::test_fault"),
    ),
    Promise(
        "The same command gives the same result.",
        "Run it twice with one seed on one machine: metrics.csv, its times apart, and every "
        "picture have the same bytes.",
        (
            "test_training::test_equal_seeds_give_equal_runs_and_others_do_not",
            "test_commands::test_equal_seeds_give_equal_bytes",
        ),
    ),
    Promise(
        "A sweep survives its failures.",
        "When a job fails, the others go on. At the end a table shows how each job ended, and the "
        "exit code is the largest of all.",
        ("test_cli::test_sweep_goes_on_after_a_failed_job",),
    ),
)
