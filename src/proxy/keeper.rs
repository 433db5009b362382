//! State that outlasts the process: `[server] state_file`. Circuits that are open, keys that are out, orders by hand
//! and how long answers take are written when a circuit changes, once a second at most, and read at the start.
//!
//! Nothing in the file is needed. A file that is missing, broken, or of another gateway is said to be so, and ignored.
//!
//! Not here: what a circuit does with what comes back: `export`.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::circuits::AnswerKind;
use super::config::read_file;
use super::keys::Keys;
use super::orders::{Given, Order, Target};
use super::place::Place;
use super::provider::Provider;
use super::state::AppState;
use super::state::by_hand::Scope;
use super::wall_clock;
use crate::error::Escaped;
use crate::{Cause, CircuitState, Exported, ExportedBreaker};

/// Changes within this time are written together.
const PAUSE: Duration = Duration::from_secs(1);
/// What is learnt changes slowly, and no transition tells of it.
const AT_LEAST_EVERY: Duration = Duration::from_secs(60);
/// How old latencies may be.
const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// Of so many models and kinds of answers the latencies are kept: the file stays below the limit for reading it.
const MAX_LATENCIES: usize = 1000;

const FORMAT: &str = "fusebox state 1";

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    format: String,
    /// Those that had something to keep, by name.
    providers: BTreeMap<String, KeptProvider>,
    circuits: Exported,
    /// When those of them entered their states, by name.
    since: BTreeMap<String, String>,
    orders: Vec<KeptOrder>,
    latencies: Vec<KeptLatencies>,
}

/// What tells a provider from another one of the same name.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptProvider {
    url: String,
    /// See `Provider::keys_mark`.
    keys: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptOrder {
    provider: String,
    model: Option<String>,
    kind: Option<String>,
    order: Order,
    reason: String,
    by: Option<String>,
    at: String,
    until: Option<String>,
}

/// How many answers took how long.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptLatencies {
    provider: String,
    model: String,
    kind: String,
    /// Microseconds, and how many.
    counts: Vec<(u64, u32)>,
}

/// Keeps the state of a gateway.
pub(crate) struct Keeper {
    app: Arc<AppState>,
    file: PathBuf,
    /// A write goes on when nobody waits for it any more, and there must not be two at a time.
    writing: Arc<Mutex<()>>,
}

impl Keeper {
    /// `None` if the configuration names no file. Reads the file.
    pub(crate) fn new(app: &Arc<AppState>) -> Option<Self> {
        let file = app.live().server.state_file.clone()?;
        match read_file(&file) {
            Ok(text) => restore(app, &file, &text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                info!(file = %file.display(), "there is no state to restore");
            }
            Err(error) => warn!(file = %file.display(), %error, "the state is not restored"),
        }
        Some(Self { app: Arc::clone(app), file, writing: Arc::default() })
    }

    /// Writes the state whenever it has changed, until it is dropped.
    pub(crate) async fn run(&self) {
        let mut is_failing = false;
        loop {
            let _ = timeout(AT_LEAST_EVERY, self.app.chronicle.changed.notified()).await;
            self.write(&mut is_failing).await;
            sleep(PAUSE).await;
        }
    }

    /// Writes the state for the last time.
    pub(crate) async fn end(&self) {
        self.write(&mut false).await;
    }

    /// `is_failing`: whether it has been said that the file cannot be written.
    async fn write(&self, is_failing: &mut bool) {
        let (app, file, writing) = (Arc::clone(&self.app), self.file.clone(), Arc::clone(&self.writing));
        let written = tokio::task::spawn_blocking(move || {
            let _writing = writing.lock();
            let text = serde_json::to_vec(&Kept::of(&app)).map_err(io::Error::other)?;
            replace(&file, &text)
        });
        let error = match written.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(error) => Some(io::Error::other(error)),
        };
        if let Some(error) = error.as_ref().filter(|_| !*is_failing) {
            warn!(file = %self.file.display(), %error, "the state cannot be written");
        }
        *is_failing = error.is_some();
    }
}

/// Whoever reads the file finds the old text or the new one, even if the machine fails meanwhile.
fn replace(file: &Path, text: &[u8]) -> io::Result<()> {
    let mut new = file.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut written = options.open(&new)?;
    written.write_all(text)?;
    written.sync_all()?;
    fs::rename(&new, file)?;
    // A rename is on the disk when its folder is.
    #[cfg(unix)]
    fs::File::open(file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))?
        .sync_all()?;
    Ok(())
}

impl Kept {
    fn of(app: &AppState) -> Self {
        let live = app.live();
        let (mut snapshots, mut latencies) = (Vec::new(), Vec::new());
        for provider in live.providers.iter() {
            snapshots.push(provider.breaker.snapshot());
            snapshots.extend(provider.circuits.known().map(|(.., circuit)| circuit.breaker.snapshot()));
            snapshots.extend(provider.keys.iter().flat_map(Keys::breakers).map(|breaker| breaker.snapshot()));
            for (model, kind, counts) in provider.silence.iter().flat_map(|detectors| detectors.learnt_latencies()) {
                let (provider, model, kind) = (provider.name().to_owned(), model.into(), kind.as_str().to_owned());
                let counts = counts.into_iter().map(|(time, count)| (micros(time), count)).collect();
                latencies.push(KeptLatencies { provider, model, kind, counts });
            }
        }
        let circuits = Exported::of(snapshots);
        let since = app.chronicle.all_since().into_iter();
        let is_kept = |name: &str| circuits.breakers.iter().any(|row| row.name == name);
        let since =
            since.filter(|(name, _)| is_kept(name)).map(|(name, at)| (name, wall_clock::timestamp(at).to_string()));
        let since = since.collect();
        let of = |(Target { provider, of_model }, given): (Target, Given)| {
            let (model, kind) = of_model.map(|(model, kind)| (model, kind.as_str().to_owned())).unzip();
            let Given { order, reason, by, at, until } = given;
            let time = |at| wall_clock::timestamp(at).to_string();
            KeptOrder { provider, model, kind, order, reason, by, at: time(at), until: until.map(time) }
        };
        // Of models that few ask for the least is known.
        let answers = |it: &KeptLatencies| it.counts.iter().map(|(_, count)| u64::from(*count)).sum::<u64>();
        latencies.sort_by_key(|it| std::cmp::Reverse(answers(it)));
        latencies.truncate(MAX_LATENCIES);
        Self {
            format: FORMAT.to_owned(),
            providers: live.providers.iter().map(|it| (it.name().to_owned(), KeptProvider::of(it))).collect(),
            circuits,
            since,
            orders: app.orders.all().into_iter().map(of).collect(),
            latencies,
        }
    }
}

impl KeptProvider {
    fn of(provider: &Provider) -> Self {
        Self { url: provider.config.url.to_string(), keys: provider.keys_mark() }
    }
}

fn restore(app: &AppState, file: &Path, text: &[u8]) {
    let file = file.display();
    let kept: Kept = match serde_json::from_slice(text) {
        Ok(kept) => kept,
        Err(error) => {
            let error = Escaped(error);
            return warn!(%file, %error, "the state is not restored: the file is broken, or not one of this version");
        }
    };
    if kept.format != FORMAT {
        let format = Escaped(&kept.format);
        return warn!(%file, %format, expected = FORMAT, "the state is not restored: the file has another format");
    }
    let live = app.live();
    let known = |name: &str| {
        let (kept, id) = (kept.providers.get(name)?, live.providers.find(|known| known.name() == name)?);
        let provider = &live.providers[id];
        (kept.url == provider.config.url.to_string()).then_some((kept, provider))
    };
    for (name, kept) in &kept.providers {
        let now = live.providers.find(|known| known.name() == name).map(|id| &live.providers[id].config.url);
        if now.is_some_and(|url| url.to_string() != kept.url) {
            info!(provider = %Escaped(name), "a provider is not restored: its url is another one");
        }
    }
    let now = wall_clock::now();
    for row in &kept.circuits.breakers {
        let since = kept.since.get(&row.name).and_then(|at| humantime::parse_rfc3339_weak(at).ok());
        if let Some(since) = since.filter(|since| *since < now && known(Place::of(&row.name).provider).is_some()) {
            app.chronicle.restore_since(&row.name, since);
        }
    }
    let orders = restore_orders(app, &kept, |name| known(name).is_some());
    // Carried out already, or over: the order says more than the circuit.
    let is_ordered = |row: &ExportedBreaker| {
        let by_hand = row.cause == Some(Cause::Isolated) || row.state == CircuitState::Disabled;
        by_hand && kept.orders.iter().any(|order| order.breaker() == row.name)
    };
    let mut circuits = kept.circuits.clone();
    circuits.breakers.retain(|row| !is_ordered(row));
    let all = circuits.breakers.len();
    let find = |row: &ExportedBreaker| {
        let place = Place::of(&row.name);
        let (kept, provider) = known(place.provider)?;
        let is_the_keys = place.model.is_none() && row.cause == Some(Cause::Cooldown);
        if is_the_keys && *kept != KeptProvider::of(provider) {
            return None;
        }
        provider.breaker_at(&place)
    };
    let refused = circuits.restore(find);
    for refused in &refused {
        info!(circuit = %Escaped(refused), "a circuit is not restored");
    }
    let detectors = restore_latencies(&kept, |name| known(name).map(|(_, provider)| Arc::clone(provider)));
    let circuits = all - refused.len();
    let written = wall_clock::timestamp(kept.circuits.at);
    info!(%file, %written, circuits, orders, detectors, "the state is restored");
}

/// Returns how many.
fn restore_orders(app: &AppState, kept: &Kept, is_known: impl Fn(&str) -> bool) -> usize {
    let now = wall_clock::now();
    let given = kept.orders.iter().filter(|kept| {
        let time = |text: &String| humantime::parse_rfc3339_weak(text).ok();
        let until = kept.until.as_ref().map(time);
        // An end that cannot be read is no reason to do without one.
        if until.is_some_and(|until| until.is_none_or(|until| until <= now)) || !is_known(&kept.provider) {
            return false;
        }
        let kind = kept.kind.as_deref().map(AnswerKind::parse);
        if kind == Some(None) {
            return false;
        }
        let (order, reason, by) = (kept.order, kept.reason.clone(), kept.by.clone());
        let given = Given { order, reason, by, at: time(&kept.at).unwrap_or(now), until: until.flatten() };
        app.give_order(Scope { provider: &kept.provider, model: kept.model.as_deref(), kind: kind.flatten() }, &given)
            .is_ok()
    });
    given.count()
}

impl KeptOrder {
    /// The name of its circuit.
    fn breaker(&self) -> String {
        match (&self.model, &self.kind) {
            (Some(model), Some(kind)) => format!("{}, {model}, {kind}", self.provider),
            _ => self.provider.clone(),
        }
    }
}

/// Returns how many.
fn restore_latencies(kept: &Kept, known: impl Fn(&str) -> Option<Arc<Provider>>) -> usize {
    let age = wall_clock::now().duration_since(kept.circuits.at);
    if age.unwrap_or_default() > MAX_AGE {
        info!("latencies are not restored, since they are more than a day old");
        return 0;
    }
    let restored = kept.latencies.iter().filter(|kept| {
        let (Some(provider), Some(kind)) = (known(&kept.provider), AnswerKind::parse(&kept.kind)) else {
            return false;
        };
        let (Some(detectors), Some(id)) = (&provider.silence, provider.circuits.find(&kept.model)) else {
            return false;
        };
        let counts: Vec<_> =
            kept.counts.iter().map(|(micros, count)| (Duration::from_micros(*micros), *count)).collect();
        detectors.learn_from(&kept.model, kind, &provider.circuits.of(id, kind).breaker, &counts);
        true
    });
    restored.count()
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
