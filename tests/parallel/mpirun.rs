//! Under a real `mpirun`.

use super::{RECIPE, assert_alike, corpus, run};
use crate::common::{TRAIN_GPT2, TRAIN_GPT2CU, losses, stderr, stdout};
use std::process::Command;

/// Open MPI's or MPICH's `mpirun`, if this machine has one.
pub fn mpirun() -> Command {
    let mut command = Command::new("mpirun");
    // Allows more processes than cores, and root in a container.
    let variables =
        ["OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_rmaps_base_oversubscribe"];
    command.envs(variables.map(|name| (name, "1")));
    // A job that hangs fails after two minutes.
    command.env("MPIEXEC_TIMEOUT", "120");
    command
}

#[test]
#[cfg_attr(not(has_mpirun), ignore = "needs mpirun (apt install openmpi-bin, then touch build.rs)")]
fn mpirun_starts_processes_that_connect_over_tcp() {
    let corpus = corpus();
    let alone = run(&corpus, TRAIN_GPT2, 1, "-x 5", "alone");
    for processes in ["2", "4"] {
        let mut command = mpirun();
        command.current_dir(corpus.dir.path());
        command.args(["-np", processes, TRAIN_GPT2]).args(RECIPE.split(' '));
        // TCP is the default where MPI is not built in.
        let method = if cfg!(feature = "mpi") { "tcp" } else { "auto" };
        let output = command.args(["-x", "5", "-pi", method, "-o", processes]).output().unwrap();
        assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
        let row = format!("{processes} processes over TCP, by ");
        let by = |launcher: &str| stdout(&output).contains(&format!("{row}{launcher}"));
        assert!(by("Open MPI") || by("MPICH"), "{}", stdout(&output));
        assert_alike(&losses(&corpus.path(processes)), &alone, 1e-5, 1e-4);
    }
}

/// Every stage on two processes and some on four, over the default transport.
fn mpirun_trains_alike(program: &str, flags: &str, stages_of_four: &[usize]) {
    let corpus = corpus();
    let alone = run(&corpus, program, 1, flags, "alone");
    for (processes, stages) in [("2", &[0, 1, 2, 3][..]), ("4", stages_of_four)] {
        for stage in stages {
            let out = format!("{processes}-{stage}");
            let mut command = mpirun();
            command.current_dir(corpus.dir.path()).args(["-np", processes, program]);
            command.args(format!("{RECIPE} {flags} -z {stage} -o {out}").split(' '));
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
            let row =
                format!("{processes} processes over {}", if cfg!(feature = "mpi") { "MPI" } else { "TCP" });
            assert!(stdout(&output).contains(&row), "{}", stdout(&output));
            assert_alike(&losses(&corpus.path(&out)), &alone, 1e-5, 1e-4);
        }
    }
}

#[test]
#[cfg_attr(not(has_mpirun), ignore = "needs mpirun (apt install openmpi-bin, then touch build.rs)")]
fn mpirun_trains_every_stage_alike() {
    mpirun_trains_alike(TRAIN_GPT2, "-x 30", &[0, 1, 2, 3]);
}

#[test]
#[cfg_attr(not(has_mpirun), ignore = "needs mpirun (apt install openmpi-bin, then touch build.rs)")]
fn mpirun_trains_every_stage_of_kernels_alike() {
    mpirun_trains_alike(
        TRAIN_GPT2CU,
        "--device emulated --deterministic 1 --dtype f32 -t 16 -d 64 -x 4",
        &[3],
    );
}
