//! The place at which ranks rendezvous, from flags or from what the launcher says of the machines.

use super::environment::{Launcher, OWN_RUN, Process};
use super::mesh::{Meeting, Rendezvous};
use super::secret::{self, Secret};
use anyhow::{Context, Result, bail, ensure};
use std::path::PathBuf;

/// The init method that `-pi`, `-ps` and `-pf` select.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InitMethod {
    /// The launcher's.
    Auto,
    #[cfg(feature = "mpi")]
    Mpi,
    /// TCP at `host` or `host:port`; if empty, at the address that the launcher gives.
    Tcp(String),
    /// TCP at an address in a file in this directory, which all machines share.
    SharedDirectory(PathBuf),
}

/// How this rank reaches the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// MPI, which has a rendezvous of its own.
    #[cfg(feature = "mpi")]
    Mpi,
    Tcp(Meeting),
}

/// llm.c's port.
const PORT: u16 = 12345;

/// The address of rank 0 where all ranks are on one machine: nobody else can reach it.
const LOOPBACK: &str = "127.0.0.1";

/// Determines the endpoint.
///
/// # Errors
/// One line, if neither flags nor launcher give an address, or the secret is too short.
pub fn find(
    process: &Process,
    method: &InitMethod,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Endpoint> {
    let at = match method {
        #[cfg(feature = "mpi")]
        InitMethod::Mpi => return Ok(Endpoint::Mpi),
        #[cfg(feature = "mpi")]
        InitMethod::Auto if starts_mpi(process, variable) => return Ok(Endpoint::Mpi),
        InitMethod::SharedDirectory(dir) => Rendezvous::File(dir.join("warpsmith-rank-0")),
        InitMethod::Tcp(address) if !address.is_empty() => Rendezvous::Address(with_port(address, PORT)?),
        InitMethod::Tcp(_) | InitMethod::Auto => Rendezvous::Address(address_of_launcher(process, variable)?),
    };
    let secret = variable(secret::VARIABLE).unwrap_or_default();
    Ok(Endpoint::Tcp(Meeting {
        rank: process.rank,
        world_size: process.world_size,
        size_from: process.size_from(),
        run: run_name(variable),
        secret: Secret::from_text(&secret).context(secret::VARIABLE)?,
        at,
    }))
}

/// Whether the launcher is MPI's own, or one that MPI understands (SLURM with its plugin for PMIx).
#[cfg(feature = "mpi")]
fn starts_mpi(process: &Process, variable: &dyn Fn(&str) -> Option<String>) -> bool {
    match process.launcher {
        Launcher::OpenMpi | Launcher::Mpich => true,
        Launcher::Slurm => variable("PMIX_RANK").is_some(),
        Launcher::None | Launcher::Flags | Launcher::Torchrun | Launcher::Warpsmith => false,
    }
}

/// Adds the port to `host`, `host:port`, `[::1]:port` or `::1` if it has none.
fn with_port(address: &str, port: u16) -> Result<String> {
    let colons = address.matches(':').count();
    let has_port = address.starts_with('[') || colons == 1;
    let address = match (has_port, colons) {
        (true, _) if !address.ends_with(']') => address.to_owned(),
        (false, 2..) => format!("[{address}]:{port}"),
        _ => format!("{address}:{port}"),
    };
    let number = address.rsplit_once(':').map_or("", |(_, number)| number);
    ensure!(number.parse::<u16>().is_ok_and(|port| port > 0), "-ps {address}: expected host or host:port");
    Ok(address)
}

fn address_of_launcher(process: &Process, variable: &dyn Fn(&str) -> Option<String>) -> Result<String> {
    let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
    // Several jobs may share a machine. The name that a launcher gives a job selects its port.
    let port = match run_name(variable).as_str() {
        "" => PORT,
        name => 20_000 + (crc32fast::hash(name.as_bytes()) % 20_000) as u16,
    };
    let local = || format!("{LOOPBACK}:{port}");
    let no_address = "the launcher does not give the address of rank 0: pass -pi tcp -ps HOST, or -pi fs -pf DIR on a shared disk";
    let all_local = |name: &str| set(name).and_then(|n| n.parse().ok()) == Some(process.world_size);
    Ok(match process.launcher {
        Launcher::Warpsmith | Launcher::Torchrun => {
            let named = set("MASTER_ADDR").filter(|_| !all_local("LOCAL_WORLD_SIZE"));
            let host = named.unwrap_or_else(|| LOOPBACK.to_owned());
            let port = set("MASTER_PORT").unwrap_or_else(|| PORT.to_string());
            let port: u16 =
                port.trim().parse().with_context(|| format!("MASTER_PORT={port}: expected a port"))?;
            // torchrun may keep a store of its own at that port; ours is then the next one.
            let taken = set("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
            with_port(
                &host,
                port.checked_add(u16::from(taken)).context("MASTER_PORT: expected less than 65535")?,
            )?
        }
        Launcher::Slurm => {
            let count = set("SLURM_STEP_NUM_NODES").or_else(|| set("SLURM_NNODES"));
            let one_node = count.is_some_and(|count| count.trim() == "1");
            let nodes = set("SLURM_STEP_NODELIST").or_else(|| set("SLURM_JOB_NODELIST"));
            let first = nodes.as_deref().and_then(first_node);
            let first = first.with_context(|| format!("no node in SLURM_STEP_NODELIST; {no_address}"));
            let first = if one_node { LOOPBACK.to_owned() } else { first? };
            // The list is sorted, while ranks need not be. Only rank 0 can check.
            let own = set("SLURMD_NODENAME").filter(|own| !one_node && process.rank == 0 && *own != first);
            if let Some(own) = own {
                bail!(
                    "rank 0 is on {own}, but others look for it on {first}, the first of SLURM_STEP_NODELIST; add -pi tcp -ps {own}"
                );
            }
            // Several jobs may share a node, and several steps a job.
            let number = |name| set(name).and_then(|id| id.parse::<u32>().ok()).unwrap_or(0);
            let (job, step) = (number("SLURM_JOB_ID"), number("SLURM_STEP_ID"));
            let offset = job.wrapping_add(step.wrapping_mul(7919)) % 20_000;
            with_port(&first, PORT + offset as u16)?
        }
        Launcher::OpenMpi if all_local("OMPI_COMM_WORLD_LOCAL_SIZE") => local(),
        Launcher::Mpich if all_local("MPI_LOCALNRANKS") => local(),
        Launcher::Flags if process.world_size <= 1 => local(),
        Launcher::OpenMpi | Launcher::Mpich | Launcher::Flags => bail!(no_address),
        Launcher::None => local(),
    })
}

/// Returns the first node of a list: `gpu07` for `gpu[07-09,12],login1`.
fn first_node(list: &str) -> Option<String> {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let name = &list[..end];
    let node = match list[end..].strip_prefix('[') {
        Some(ranges) => {
            let first = ranges.split([',', '-', ']']).next()?;
            let after = ranges.split_once(']')?.1;
            format!("{name}{first}{}", after.split(',').next()?)
        }
        None => name.to_owned(),
    };
    (!node.is_empty()).then_some(node)
}

/// Joins the names that launchers give a run.
fn run_name(variable: &dyn Fn(&str) -> Option<String>) -> String {
    let names = [OWN_RUN, "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID", "PMIX_NAMESPACE"];
    let parts: Vec<String> = names.iter().filter_map(|name| variable(name)).collect();
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find_with(launcher: Launcher, method: &InitMethod, set: &[(&str, &str)]) -> Result<String, String> {
        let process = Process { rank: 0, world_size: 4, local_rank: 0, launcher };
        let variable =
            |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        find(&process, method, &variable).map_err(|e| format!("{e:#}")).map(|endpoint| match endpoint {
            #[cfg(feature = "mpi")]
            Endpoint::Mpi => "MPI".to_owned(),
            Endpoint::Tcp(meeting) => meeting.at.to_string(),
        })
    }

    #[test]
    fn launchers_give_the_address() {
        let at = |launcher, set: &[(&str, &str)]| find_with(launcher, &InitMethod::Tcp(String::new()), set);
        let torchrun = [("MASTER_ADDR", "node7"), ("MASTER_PORT", "29500")];
        assert_eq!(at(Launcher::Torchrun, &torchrun).unwrap(), "rendezvous at node7:29500");
        let with_store = [torchrun[0], torchrun[1], ("TORCHELASTIC_USE_AGENT_STORE", "True")];
        assert_eq!(at(Launcher::Torchrun, &with_store).unwrap(), "rendezvous at node7:29501");
        let local = [torchrun[0], torchrun[1], ("LOCAL_WORLD_SIZE", "4")];
        assert_eq!(at(Launcher::Torchrun, &local).unwrap(), "rendezvous at 127.0.0.1:29500");
        let two_machines = [torchrun[0], torchrun[1], ("LOCAL_WORLD_SIZE", "2")];
        assert_eq!(at(Launcher::Torchrun, &two_machines).unwrap(), "rendezvous at node7:29500");
        let slurm = [("SLURM_STEP_NODELIST", "gpu[07-09,12],login1"), ("SLURM_JOB_ID", "40001")];
        assert_eq!(at(Launcher::Slurm, &slurm).unwrap(), "rendezvous at gpu07:12346");
        let second_step = [slurm[0], slurm[1], ("SLURM_STEP_ID", "1")];
        assert_eq!(at(Launcher::Slurm, &second_step).unwrap(), "rendezvous at gpu07:20265");
        let elsewhere = [slurm[0], slurm[1], ("SLURMD_NODENAME", "gpu08")];
        assert!(at(Launcher::Slurm, &elsewhere).unwrap_err().contains("rank 0 is on gpu08"));
        for (step, job, host) in
            [("1", "1", "127.0.0.1"), ("", "1", "127.0.0.1"), ("1", "2", "127.0.0.1"), ("2", "1", "gpu07")]
        {
            let nodes = [slurm[0], slurm[1], ("SLURM_STEP_NUM_NODES", step), ("SLURM_NNODES", job)];
            assert_eq!(at(Launcher::Slurm, &nodes).unwrap(), format!("rendezvous at {host}:12346"));
        }
        let one_machine = [("OMPI_COMM_WORLD_LOCAL_SIZE", "4")];
        assert_eq!(at(Launcher::OpenMpi, &one_machine).unwrap(), "rendezvous at 127.0.0.1:12345");
        let [first, second] = ["1", "2"].map(|job| [one_machine[0], ("PMIX_NAMESPACE", job)]);
        assert_ne!(at(Launcher::OpenMpi, &first).unwrap(), at(Launcher::OpenMpi, &second).unwrap());
        for (launcher, set) in
            [(Launcher::OpenMpi, ("OMPI_COMM_WORLD_LOCAL_SIZE", "2")), (Launcher::Flags, ("", ""))]
        {
            assert!(at(launcher, &[set]).unwrap_err().contains("-ps HOST"));
        }
        assert!(at(Launcher::Torchrun, &[("MASTER_PORT", "x")]).unwrap_err().contains("MASTER_PORT=x"));
    }

    #[test]
    fn launchers_of_mpi_select_it_where_it_is_built_in() {
        let auto = |launcher, set: &[(&str, &str)]| find_with(launcher, &InitMethod::Auto, set).unwrap();
        let local =
            [("OMPI_COMM_WORLD_LOCAL_SIZE", "4"), ("MPI_LOCALNRANKS", "4"), ("SLURM_STEP_NODELIST", "n")];
        let pmix = [local[2], ("PMIX_RANK", "0")];
        let by_mpi = [(Launcher::OpenMpi, &local[..]), (Launcher::Mpich, &local), (Launcher::Slurm, &pmix)];
        for (launcher, set) in by_mpi {
            assert_eq!(auto(launcher, set) == "MPI", cfg!(feature = "mpi"), "{launcher:?}");
            assert_ne!(find_with(launcher, &InitMethod::Tcp(String::new()), set).unwrap(), "MPI");
        }
        for launcher in [Launcher::Slurm, Launcher::Torchrun] {
            assert!(auto(launcher, &local).starts_with("rendezvous at "), "{launcher:?}");
        }
    }

    #[test]
    fn flags_take_precedence() {
        let at = |method: InitMethod| find_with(Launcher::Torchrun, &method, &[("MASTER_ADDR", "node7")]);
        let tcp = |address: &str| at(InitMethod::Tcp(address.to_owned()));
        assert_eq!(tcp("10.0.0.1").unwrap(), "rendezvous at 10.0.0.1:12345");
        assert_eq!(tcp("head:99").unwrap(), "rendezvous at head:99");
        assert_eq!(tcp("::1").unwrap(), "rendezvous at [::1]:12345");
        assert_eq!(tcp("[::1]").unwrap(), "rendezvous at [::1]:12345");
        assert_eq!(tcp("[::1]:7").unwrap(), "rendezvous at [::1]:7");
        assert_eq!(tcp("").unwrap(), "rendezvous at node7:12345");
        assert!(tcp("head:0").unwrap_err().contains("expected host or host:port"));
        let dir = at(InitMethod::SharedDirectory("/shared".into())).unwrap();
        assert_eq!(dir, "rendezvous through /shared/warpsmith-rank-0");
    }

    #[test]
    fn the_secret_comes_from_the_environment() {
        let find = |token: &str| {
            let variable = |name: &str| (name == secret::VARIABLE).then(|| token.to_owned());
            let process = Process { rank: 1, world_size: 4, local_rank: 1, launcher: Launcher::Torchrun };
            find(&process, &InitMethod::Tcp("node7".into()), &variable).map_err(|e| format!("{e:#}"))
        };
        let Ok(Endpoint::Tcp(meeting)) = find(" 0123456789abcdef\n") else { panic!("no meeting") };
        assert_eq!(meeting.secret.reveal(), "0123456789abcdef");
        assert!(find("secret").unwrap_err().starts_with("WARPSMITH_TOKEN: expected at least 16"));
    }

    #[test]
    fn the_first_node_of_a_list() {
        let first = |list| first_node(list).unwrap_or_default();
        assert_eq!(first("node1"), "node1");
        assert_eq!(first("node1,node2"), "node1");
        assert_eq!(first("gpu[12,14-16]"), "gpu12");
        assert_eq!(first("rack[1-2]-gpu,x"), "rack1-gpu");
        assert_eq!(first(""), "");
    }
}
