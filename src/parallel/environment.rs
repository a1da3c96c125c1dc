//! The rank of this process and the number of ranks, from the launcher's environment variables and
//! from flags.

use anyhow::{Context, Result, bail, ensure};

/// One rank of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub rank: usize,
    pub world_size: usize,
    /// The rank among the processes on this machine, which is the number of its GPU.
    pub local_rank: usize,
    pub launcher: Launcher,
}

/// The program that started the processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// No launcher: this is the only process.
    None,
    /// Any program that passes `-pn` and `-pr` to each process.
    Flags,
    /// `warpsmith launch`
    Warpsmith,
    /// `torchrun`, and launchers that set the same variables.
    Torchrun,
    OpenMpi,
    /// MPICH and its derivatives: Intel MPI, MVAPICH, Cray.
    Mpich,
    Slurm,
}

/// The variable in which `warpsmith launch` names a run.
pub const OWN_RUN: &str = "WARPSMITH_RUN";

/// Variable with the start of the launcher, in seconds since 1970. It is the same for all attempts.
pub const STARTED: &str = "WARPSMITH_STARTED";

/// The most processes that a run may have.
pub const MAX_PROCESSES: usize = 1 << 16;

/// The variables a launcher sets.
struct Variables {
    launcher: Launcher,
    /// A variable that distinguishes it from launchers that set the same ones.
    marker: Option<&'static str>,
    rank: &'static str,
    world_size: &'static str,
    local_rank: &'static str,
}

/// Launchers in order of precedence. `mpirun` inside a SLURM job inherits SLURM's variables, which
/// describe `mpirun`'s own helper processes.
const LAUNCHERS: [Variables; 5] = [
    Variables {
        launcher: Launcher::Warpsmith,
        marker: Some(OWN_RUN),
        rank: "RANK",
        world_size: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
    },
    Variables {
        launcher: Launcher::Torchrun,
        marker: None,
        rank: "RANK",
        world_size: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
    },
    Variables {
        launcher: Launcher::OpenMpi,
        marker: None,
        rank: "OMPI_COMM_WORLD_RANK",
        world_size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
    },
    Variables {
        launcher: Launcher::Mpich,
        marker: None,
        rank: "PMI_RANK",
        world_size: "PMI_SIZE",
        local_rank: "MPI_LOCALRANKID",
    },
    // The variables of a step, which `srun` starts. The job script, which `sbatch` starts, is a
    // single process whatever the size of the job.
    Variables {
        launcher: Launcher::Slurm,
        marker: None,
        rank: "SLURM_PROCID",
        world_size: "SLURM_STEP_NUM_TASKS",
        local_rank: "SLURM_LOCALID",
    },
];

/// The flags about processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `-pn`
    pub num_processes: Option<usize>,
    /// `-pr`
    pub process_rank: Option<usize>,
    /// `-pg`
    pub gpus_per_node: usize,
}

impl Default for Process {
    fn default() -> Self {
        Process::ALONE
    }
}

impl Process {
    /// The only process of a run.
    pub const ALONE: Self = Process { rank: 0, world_size: 1, local_rank: 0, launcher: Launcher::None };

    pub fn is_rank0(&self) -> bool {
        self.rank == 0
    }

    /// The origin of the world size, for messages: `WORLD_SIZE=2 in the environment`.
    pub fn size_from(&self) -> String {
        let names = LAUNCHERS.iter().find(|names| names.launcher == self.launcher);
        match names {
            Some(names) => format!("{}={} in the environment", names.world_size, self.world_size),
            None => format!("-pn {}", self.world_size),
        }
    }

    /// Determines the process from flags and from the environment, which `variable` looks up.
    ///
    /// # Errors
    /// One line, if they are inconsistent.
    pub fn find(flags: Flags, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let counts = |names: &&Variables| names.launcher != Launcher::Mpich || !is_pmi_of_srun(variable);
        let mut launchers = LAUNCHERS.iter().filter(counts);
        let launched = launchers.find_map(|names| names.read(variable).transpose()).transpose()?;
        match launched {
            Some(process) => flags.check_against(&process).map(|()| process),
            None => flags.process(),
        }
    }
}

/// Whether MPICH's variables were set by `srun --mpi=pmi2`, which gives the local rank in its own
/// variable only.
fn is_pmi_of_srun(variable: &dyn Fn(&str) -> Option<String>) -> bool {
    let same = |pmi: &str, slurm: &str| variable(pmi).is_some() && variable(pmi) == variable(slurm);
    variable("MPI_LOCALRANKID").is_none()
        && same("PMI_RANK", "SLURM_PROCID")
        && same("PMI_SIZE", "SLURM_STEP_NUM_TASKS")
}

impl Variables {
    /// Reads the process that the variables describe, if they are set.
    fn read(&self, variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Process>> {
        let number = |name: &str| {
            let text = variable(name).filter(|text| !text.trim().is_empty());
            let number = text.as_ref().map(|text| text.trim().parse::<usize>());
            number.transpose().with_context(|| {
                format!("{name}={}: expected a non-negative integer", text.unwrap_or_default())
            })
        };
        let Self { launcher, marker, rank: rank_name, world_size: size_name, local_rank: local_name } = *self;
        if marker.is_some_and(|marker| variable(marker).is_none()) {
            return Ok(None);
        }
        // A rank alone may be a leftover variable; a launcher also sets the number of processes.
        let Some(world_size) = number(size_name)? else { return Ok(None) };
        ensure!(
            (1..=MAX_PROCESSES).contains(&world_size),
            "{size_name}={world_size}: expected at least one process and at most {MAX_PROCESSES}"
        );
        let rank = number(rank_name)?
            .with_context(|| format!("{size_name}={world_size} but no {rank_name}: set both or neither"))?;
        ensure!(rank < world_size, "{rank_name}={rank}: expected less than {size_name}={world_size}");
        let local_rank = match number(local_name)? {
            Some(local_rank) => local_rank,
            None if world_size == 1 => 0,
            None => {
                bail!("{size_name}={world_size} but no {local_name}, which selects the GPU: set it")
            }
        };
        ensure!(
            local_rank <= rank,
            "{local_name}={local_rank}: expected at most {rank_name}={rank}; ranks are numbered machine by machine"
        );
        Ok(Some(Process { rank, world_size, local_rank, launcher }))
    }
}

impl Flags {
    fn process(self) -> Result<Process> {
        let Flags { num_processes, process_rank, gpus_per_node } = self;
        let world_size = num_processes.unwrap_or(1);
        let rank = match process_rank {
            Some(rank) => rank,
            None if world_size == 1 => return Ok(Process::ALONE),
            None => bail!(
                "-pn {world_size}: expected a launcher (mpirun, srun, torchrun, warpsmith launch), or -pr with the rank of \
                 this process"
            ),
        };
        ensure!(rank < world_size, "-pr {rank}: expected less than -pn {world_size}; ranks count from 0");
        let launcher = if world_size == 1 { Launcher::None } else { Launcher::Flags };
        Ok(Process { rank, world_size, local_rank: rank % gpus_per_node, launcher })
    }

    /// Checks the flags, which may repeat what the launcher says.
    fn check_against(self, process: &Process) -> Result<()> {
        let Process { rank, world_size, .. } = *process;
        let flags = [
            ("-pn", self.num_processes, world_size, format!("{world_size} processes")),
            ("-pr", self.process_rank, rank, format!("this process as rank {rank}")),
        ];
        for (flag, asked, found, what) in flags {
            if let Some(asked) = asked.filter(|asked| *asked != found) {
                let launcher = process.launcher.name();
                bail!(
                    "{flag} {asked}: {launcher} started {what}; drop the flag, or start without a launcher"
                );
            }
        }
        Ok(())
    }
}

impl Launcher {
    pub fn name(self) -> &'static str {
        match self {
            Launcher::None => "no launcher",
            Launcher::Flags => "-pn and -pr",
            Launcher::Warpsmith => "warpsmith launch",
            Launcher::Torchrun => "torchrun",
            Launcher::OpenMpi => "Open MPI's mpirun",
            Launcher::Mpich => "MPICH's mpirun",
            Launcher::Slurm => "srun",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find_with(flags: Flags, set: &[(&str, &str)]) -> Result<Process, String> {
        let variable =
            |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Process::find(flags, &variable).map_err(|e| format!("{e:#}"))
    }

    fn find(set: &[(&str, &str)]) -> Result<Process, String> {
        find_with(Flags { gpus_per_node: 8, ..Flags::default() }, set)
    }

    const OPEN_MPI: [(&str, &str); 3] =
        [("OMPI_COMM_WORLD_RANK", "5"), ("OMPI_COMM_WORLD_SIZE", "8"), ("OMPI_COMM_WORLD_LOCAL_RANK", "1")];

    #[test]
    fn launchers_are_understood() {
        let process = |launcher| Process { rank: 5, world_size: 8, local_rank: 1, launcher };
        let torchrun = [("RANK", "5"), ("WORLD_SIZE", " 8 "), ("LOCAL_RANK", "1"), ("MASTER_PORT", "29500")];
        assert_eq!(find(&torchrun), Ok(process(Launcher::Torchrun)));
        let mut ours = torchrun.to_vec();
        ours.push((OWN_RUN, "launch 7 0"));
        assert_eq!(find(&ours), Ok(process(Launcher::Warpsmith)));
        assert_eq!(find(&[(OWN_RUN, "launch 7 0")]), Ok(Process::ALONE));
        assert_eq!(find(&OPEN_MPI), Ok(process(Launcher::OpenMpi)));
        assert_eq!(find(&OPEN_MPI).unwrap().size_from(), "OMPI_COMM_WORLD_SIZE=8 in the environment");
        let mpich = [("PMI_RANK", "5"), ("PMI_SIZE", "8"), ("MPI_LOCALRANKID", "1")];
        assert_eq!(find(&mpich), Ok(process(Launcher::Mpich)));
        let slurm = [("SLURM_PROCID", "5"), ("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_LOCALID", "1")];
        assert_eq!(find(&slurm), Ok(process(Launcher::Slurm)));
    }

    #[test]
    fn without_a_launcher_there_is_one_process() {
        assert_eq!(find(&[]), Ok(Process::ALONE));
        // The script of a SLURM job; a leftover rank in the environment.
        assert_eq!(find(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]), Ok(Process::ALONE));
        assert_eq!(find(&[("RANK", "3"), ("WORLD_SIZE", "")]), Ok(Process::ALONE));
        let one = find(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap();
        assert_eq!((one.rank, one.world_size, one.local_rank), (0, 1, 0));
    }

    #[test]
    fn the_inner_launcher_counts() {
        let mut both = OPEN_MPI.to_vec();
        both.extend([("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_LOCALID", "0")]);
        assert_eq!(find(&both).unwrap().launcher, Launcher::OpenMpi);
    }

    #[test]
    fn flags_replace_a_launcher_and_assign_gpus() {
        let flags = |n, r| Flags { num_processes: Some(n), process_rank: Some(r), gpus_per_node: 8 };
        let process = find_with(flags(16, 11), &[]).unwrap();
        let expected = Process { rank: 11, world_size: 16, local_rank: 3, launcher: Launcher::Flags };
        assert_eq!(process, expected);
        assert_eq!(process.size_from(), "-pn 16");
        assert_eq!(find_with(flags(1, 0), &[]), Ok(Process::ALONE));
        assert_eq!(find_with(flags(8, 5), &OPEN_MPI).unwrap().launcher, Launcher::OpenMpi);
    }

    #[test]
    fn contradictions_are_one_line_that_names_them() {
        let flags = |num_processes, process_rank| Flags { num_processes, process_rank, gpus_per_node: 8 };
        let none = flags(None, None);
        type Case<'a> = (Flags, &'a [(&'a str, &'a str)], &'a str);
        let cases: [Case; 10] = [
            (flags(Some(4), None), &[], "-pn 4: expected a launcher"),
            (flags(Some(4), Some(4)), &[], "-pr 4: expected less than -pn 4"),
            (flags(Some(4), None), &OPEN_MPI, "-pn 4: Open MPI's mpirun started 8 processes"),
            (flags(None, Some(0)), &OPEN_MPI, "-pr 0: Open MPI's mpirun started this process as rank 5"),
            (none, &[("WORLD_SIZE", "2")], "WORLD_SIZE=2 but no RANK"),
            (none, &[("WORLD_SIZE", "2"), ("RANK", "2")], "RANK=2: expected less than WORLD_SIZE=2"),
            (none, &[("WORLD_SIZE", "2"), ("RANK", "1")], "no LOCAL_RANK"),
            (none, &[("WORLD_SIZE", "two")], "WORLD_SIZE=two: expected a non-negative integer"),
            (none, &[("WORLD_SIZE", "0")], "WORLD_SIZE=0: expected at least one process"),
            (none, &[("WORLD_SIZE", "65537")], "WORLD_SIZE=65537: expected at least one process and at most"),
        ];
        for (flags, set, expected) in cases {
            let error = find_with(flags, set).unwrap_err();
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        }
    }
}
