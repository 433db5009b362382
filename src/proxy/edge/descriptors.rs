//! How the file descriptors of the process are shared out: clients must not use up those that providers and operators
//! need.

use std::io;

use crate::proxy::config::ServerConfig;

/// Reserved for listeners and logs, and for each core's runtime.
const KEPT: u64 = 32;
const KEPT_FOR_A_CORE: u64 = 4;
/// Operators need few connections.
const MAX_OPERATORS: u64 = 256;

/// How many connections may be open at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shares {
    pub(crate) clients: u64,
    pub(crate) operators: u64,
}

impl Shares {
    /// The shares of the descriptors that this process may open.
    ///
    /// # Errors
    ///
    /// If there are too few for a single connection.
    pub(crate) fn of_this_process(max_clients: u64, cores: u64) -> io::Result<Self> {
        #[cfg(unix)]
        let limit = rlimit::Resource::NOFILE.get_soft()?;
        #[cfg(not(unix))]
        let limit = u64::MAX;
        Self::of(limit, max_clients, cores)
    }

    /// A client's request needs a connection to a provider as well, so each of the two gets half of what is left.
    fn of(limit: u64, max_clients: u64, cores: u64) -> io::Result<Self> {
        let operators = MAX_OPERATORS.min(limit / 8);
        let kept = KEPT + KEPT_FOR_A_CORE * cores + operators;
        let clients = (limit.saturating_sub(kept) / 2).min(max_clients);
        if clients == 0 || operators == 0 {
            let least = 2 * (KEPT + KEPT_FOR_A_CORE * cores);
            return Err(io::Error::other(format!(
                "server.cores: {cores} threads cannot be started: the limit of open files is {limit}, expected at least \
                 {least} (ulimit -n, LimitNOFILE)"
            )));
        }
        Ok(Self { clients, operators })
    }
}

/// Whether this process may open enough files to serve anybody. The binary asks before it binds a port.
///
/// # Errors
///
/// If it may not, with the setting and the limit.
pub fn check_descriptors(server: &ServerConfig) -> io::Result<()> {
    Shares::of_this_process(server.max_connections, server.cores).map(drop)
}

#[cfg(test)]
mod tests {
    use super::Shares;

    #[test]
    fn providers_get_as_many_descriptors_as_clients_and_operators_get_some() {
        let shares = |limit, max_clients| Shares::of(limit, max_clients, 2).ok().map(|it| (it.clients, it.operators));
        assert_eq!(shares(1024, 10_000), Some((428, 128)));
        assert_eq!(shares(65_536, 10_000), Some((10_000, 256)));
        assert_eq!(shares(u64::MAX, 10_000), Some((10_000, 256)));
        assert_eq!(shares(80, 10_000), Some((15, 10)));
        for (limit, clients) in [(1024, 428), (4096, 1900)] {
            let Shares { clients: share, operators } = Shares::of(limit, u64::MAX, 2).unwrap();
            assert_eq!(share, clients);
            assert!(2 * share + operators + 40 <= limit);
        }
        assert_eq!(shares(40, 10_000), None);
        assert!(Shares::of(40, 1, 2).unwrap_err().to_string().contains("is 40, expected at least 80"));
    }
}
