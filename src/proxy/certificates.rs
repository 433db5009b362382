//! The certificate that new connections of clients or operators are served with, and looking whether its files have
//! changed.
//!
//! Not here: reading the files: `config::certificates`; handshakes: `edge::clients`.

use std::fmt;
use std::fs;
use std::io;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use tokio_rustls::TlsAcceptor;
use tracing::{error, info};

use super::config::{BadFile, ServerTls};
use super::upstream::SetupError;

/// How often to look whether the files have changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// `None` inside: they connect without TLS.
#[derive(Default)]
pub(crate) struct Certificates(ArcSwapOption<Loaded>);

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Certificates").field(&self.0.load().as_ref().map(|loaded| &loaded.files)).finish()
    }
}

/// Who is served with a certificate.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Whose {
    Clients,
    Operators,
}

impl Whose {
    fn field(self) -> &'static str {
        match self {
            Self::Clients => "server.tls",
            Self::Operators => "server.admin_tls",
        }
    }
}

#[derive(Clone)]
pub(crate) struct Loaded {
    whose: Whose,
    files: ServerTls,
    /// The files as they were before they were read.
    stamps: Stamps,
    acceptor: TlsAcceptor,
}

/// When files were changed last, and how long they are. A file that cannot be looked at is like none.
type Stamps = Vec<Option<(SystemTime, u64)>>;

impl Certificates {
    /// Reads the files that a field of the configuration names, for [`set`](Self::set).
    pub(crate) fn load(whose: Whose, files: Option<&ServerTls>) -> Result<Option<Arc<Loaded>>, SetupError> {
        let loaded = files.map(|files| Loaded::new(whose, files)).transpose();
        loaded.map_err(|BadFile { field, file, why }| {
            SetupError::new(format!("{}.{field}: {} {why}", whose.field(), file.display()))
        })
    }

    pub(crate) fn set(&self, loaded: Option<Arc<Loaded>>) {
        self.0.store(loaded);
    }

    /// For a new connection. `None` if it is one without TLS.
    pub(crate) fn acceptor(&self) -> Option<TlsAcceptor> {
        self.0.load().as_ref().map(|loaded| loaded.acceptor.clone())
    }

    /// Reads the files again if they are not as they were. `last` is how they were when it looked last: files that are
    /// being replaced one after the other are left alone until they stand still.
    fn look(&self, last: &mut Stamps) {
        let current = self.0.load_full();
        let Some(loaded) = &current else { return };
        let now = stamps(&loaded.files);
        let stands_still = *last == now;
        *last = now;
        if !stands_still || *last == loaded.stamps {
            return;
        }
        let (new, failed) = match Loaded::new(loaded.whose, &loaded.files) {
            Ok(new) => (new, None),
            // It is told once.
            Err(bad) => (Arc::new(Loaded { stamps: last.clone(), ..(**loaded).clone() }), Some(bad)),
        };
        // Unless a reload of the configuration came first.
        let before = self.0.compare_and_swap(&current, Some(new));
        if !before.as_ref().is_some_and(|before| Arc::ptr_eq(before, loaded)) {
            return;
        }
        match failed {
            None => info!(cert = %loaded.files.cert.display(), "certificate reloaded"),
            Some(BadFile { field, file, why }) => {
                error!(field, file = %file.display(), why, "certificate not reloaded, the old one stays in use");
            }
        }
    }

    /// Looks at the files every second until `owner` is dropped. It does so on a thread of its own, since a disk may
    /// not answer.
    ///
    /// # Errors
    ///
    /// If the thread cannot be started.
    pub(crate) fn watch<T: Send + Sync + 'static>(
        owner: Weak<T>,
        certificates: fn(&T) -> [&Self; 2],
    ) -> io::Result<()> {
        let watch = move || {
            let mut last = <[Stamps; 2]>::default();
            while let Some(owner) = owner.upgrade() {
                certificates(&owner)
                    .into_iter()
                    .zip(&mut last)
                    .for_each(|(certificates, last)| certificates.look(last));
                drop(owner);
                thread::park_timeout(LOOK_EVERY);
            }
        };
        thread::Builder::new().name("certificates".into()).spawn(watch).map(drop)
    }
}

impl Loaded {
    fn new(whose: Whose, files: &ServerTls) -> Result<Arc<Self>, BadFile> {
        let stamps = stamps(files);
        let mut config = files.load()?;
        if let Whose::Operators = whose {
            // Their port speaks nothing else.
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
        }
        Ok(Arc::new(Self { whose, files: files.clone(), stamps, acceptor: TlsAcceptor::from(Arc::new(config)) }))
    }
}

fn stamps(files: &ServerTls) -> Stamps {
    let stamp = |file| fs::metadata(file).and_then(|file| Ok((file.modified()?, file.len()))).ok();
    files.files().map(stamp).collect()
}
