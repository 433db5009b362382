//! `fusebox demo`: two simulated providers and the gateway in one process, on loopback. It uses the gateway as any
//! embedder does.

mod load;
mod provider;
mod screen;
mod view;

use std::error::Error;
use std::future::Future;
use std::io::{self, IsTerminal, Write, stdout};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::routing::post;
use clap::Args;
use fusebox::proxy::{AnswerKind, AppState, GatewayConfig, ProviderStats, run_server};
use fusebox::{CircuitBreaker, CircuitState};
use http::StatusCode;
use tokio::net::TcpListener;

use self::load::{Load, Summary};
use self::provider::Simulated;
use self::provider::{Fault, Latency};

const MODEL: &str = "demo";
const OPEN_FOR: Duration = Duration::from_secs(2);
/// Requests per second on a terminal.
const QUIET_RATE: u32 = 20;
const OUTAGE_RATE: u32 = 100;

/// The arguments of `fusebox demo`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Break the first provider for this long, heal it, and end with a summary.
    #[arg(long, value_parser = humantime::parse_duration)]
    outage: Option<Duration>,
    /// How the first provider fails during the outage.
    #[arg(long, value_enum, default_value_t = Fault::Http500, requires = "outage")]
    fault: Fault,
    /// How long the providers take for the first piece of an answer.
    #[arg(long, value_enum, default_value_t = Latency::Short)]
    latency: Latency,
    /// Print the summary as one JSON object on the last line of standard output; everything else goes to standard
    /// error.
    #[arg(long, requires = "outage")]
    json: bool,
    /// Requests per second. Default: 100 with --outage; else 20 on a terminal, and none elsewhere.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: Option<u32>,
    /// The share of requests that ask for a stream, from 0 to 1.
    #[arg(long, default_value_t = 0.5, value_parser = share)]
    stream_share: f64,
    /// The gateway's port; the next one breaks and heals the providers. Default: 8080, or any free one with --outage.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=65_534))]
    port: Option<u16>,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

/// The two providers and the gateway in front of them.
struct Stage {
    state: Arc<AppState>,
    providers: [Arc<Simulated>; 2],
    gateway: SocketAddr,
    control: SocketAddr,
    admin: SocketAddr,
    load: Arc<Load>,
}

/// The arguments of `fusebox simulate`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Simulation {
    /// Where it listens.
    #[arg(long, default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// How long it takes for the first piece of an answer.
    #[arg(long, value_enum, default_value_t = Latency::Short)]
    latency: Latency,
}

/// Runs one simulated provider until `stop` completes.
///
/// # Errors
///
/// If its port cannot be bound.
pub(crate) async fn simulate(options: Simulation, stop: impl Future<Output = ()>) -> Result<(), Box<dyn Error>> {
    let Simulation { listen, latency } = options;
    let bound = Simulated::start_on(listen, "simulated", latency, || {});
    let provider = bound.map_err(|error| format!("{listen} cannot be bound: {error}; choose another with --listen"))?;
    let address = provider.address();
    let faults: Vec<_> = Fault::all().filter(|fault| *fault != Fault::Refuse).map(Fault::as_str).collect();
    let faults = faults.join(", ");
    // In one piece: whoever reads the first line may leave.
    let text = format!(
        "a simulated provider at http://{address}/v1\nbreak it by POST /simulate/...: {faults}; then /simulate/heal\n"
    );
    stdout().write_all(text.as_bytes())?;
    stop.await;
    Ok(())
}

/// Runs the demo until it is over or `stop` completes.
///
/// # Errors
///
/// If a port cannot be bound.
pub(crate) async fn run(options: Options, stop: impl Future<Output = ()>) -> Result<(), Box<dyn Error>> {
    let port = options.port.unwrap_or(if options.outage.is_some() { 0 } else { 8080 });
    let gateway = bind(port).await?;
    let beside = |distance| if port == 0 { 0 } else { port + distance };
    let control = bind(beside(1)).await?;
    let admin = bind(beside(2)).await?;
    let start = |name| Simulated::start(name, options.latency, || {});
    let providers = [start("primary")?, start("fallback")?];
    let config = GatewayConfig::from_toml(&config_text(&providers, options.latency))?;
    let on_screen = std::io::stdout().is_terminal() && !options.json;
    let default_rate = if options.outage.is_some() { OUTAGE_RATE } else { QUIET_RATE };
    let is_loaded = options.rate.is_some() || options.outage.is_some() || on_screen;
    let stage = Stage {
        state: AppState::new(&config)?,
        providers,
        gateway: gateway.local_addr()?,
        control: control.local_addr()?,
        admin: admin.local_addr()?,
        load: Arc::new(Load::new(options.rate.unwrap_or(default_rate), options.stream_share)),
    };
    let (finish, finished) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(run_server(Arc::clone(&stage.state), gateway, Some(admin), async {
        // An error says that the sender is gone, which means the same.
        let _ = finished.await;
    }));
    tokio::spawn(axum::serve(control, control_router(&stage.providers)).into_future());

    let show = async {
        if on_screen { screen::show(&stage).await } else { view::print_changes(&stage, options.outage.is_some()).await }
    };
    let summary = match options.outage {
        None => {
            write!(stdout(), "{}", instructions(&stage, on_screen))?;
            tokio::select! {
                () = show => None,
                () = stage.load.send(stage.gateway), if is_loaded => None,
                () = stop => None,
            }
        }
        Some(outage) => {
            tokio::select! {
                summary = load::drive(&stage, outage, options.fault) => Some(summary),
                () = show => None,
                () = stop => None,
            }
        }
    };
    if let Some(summary) = summary {
        report(&summary, options.json)?;
    }
    drop(finish);
    server.await??;
    Ok(())
}

async fn bind(port: u16) -> Result<TcpListener, String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let bound = TcpListener::bind(address).await;
    bound.map_err(|error| format!("{address} cannot be bound: {error}; choose another with --port"))
}

fn config_text(providers: &[Arc<Simulated>; 2], latency: Latency) -> String {
    let provider = |provider: &Arc<Simulated>| {
        format!(
            "[[providers]]\nname = '{}'\nurl = 'http://{}/v1'\nmodels = ['{MODEL}']\nprotocol = 'both'\napi_key = 'simulated'\n",
            provider.name(),
            provider.address()
        )
    };
    let open_for = OPEN_FOR.as_secs();
    let (first_byte, total) = match latency {
        Latency::Short => ("1s", "2s"),
        Latency::Tail => ("25s", "50s"),
    };
    let head = format!(
        "[server]\ndrain_limit = '1s'\n[breaker]\nopen_for = '{open_for}s'\n\
         [timeouts]\nfirst_byte = '{first_byte}'\nidle = '1s'\ntotal = '{total}'\n"
    );
    head + &providers.each_ref().map(provider).concat()
}

/// `POST /primary/hang`, `POST /primary/heal`.
fn control_router(providers: &[Arc<Simulated>; 2]) -> Router {
    let providers = providers.clone();
    let set = async move |Path((name, fault)): Path<(String, String)>| {
        let Some(provider) = providers.iter().find(|provider| provider.name() == name) else {
            return (StatusCode::NOT_FOUND, "expected primary or fallback\n".to_owned());
        };
        let fault = match Fault::parse(&fault) {
            Ok(fault) => fault,
            Err(expected) => return (StatusCode::NOT_FOUND, expected),
        };
        provider.set(fault).await;
        (StatusCode::OK, format!("{name}: {}\n", fault.map_or("healthy", Fault::as_str)))
    };
    Router::new().route("/{provider}/{fault}", post(set))
}

fn instructions(stage: &Stage, on_screen: bool) -> String {
    let Stage { gateway, control, admin, .. } = stage;
    let end = if on_screen { "q" } else { "Ctrl-C" };
    let faults = Fault::all().map(Fault::as_str).collect::<Vec<_>>().join(", ");
    format!(
        "fusebox demo: a gateway in front of two simulated providers, primary and fallback. {end} ends it.

ask       curl -i http://{gateway}/v1/chat/completions -H 'content-type: application/json' \\
               -d '{{\"model\": \"{MODEL}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'
stream    curl -N http://{gateway}/v1/chat/completions -H 'content-type: application/json' \\
               -d '{{\"model\": \"{MODEL}\", \"stream\": true, \"messages\": []}}'
look      http://{admin}/ in a browser, or fusebox ctl --url http://{admin} watch
metrics   curl http://{admin}/metrics
break     curl -X POST http://{control}/primary/500  (any of {faults})
heal      curl -X POST http://{control}/primary/heal

"
    )
}

fn report(summary: &Summary, json: bool) -> io::Result<()> {
    let text = summary.to_string();
    if json {
        eprint!("{text}");
        writeln!(stdout(), "{}", serde_json::to_string(summary).expect("numbers and strings"))
    } else {
        write!(stdout(), "{text}")
    }
}

impl Stage {
    /// What the gateway has counted of one of the two providers.
    fn stats(&self, provider: usize) -> ProviderStats {
        let name = self.providers[provider].name();
        self.state.provider_stats(name).expect("both are configured")
    }

    /// One of the two providers' own circuit, and those of its model.
    fn circuits(&self, provider: usize) -> Circuits {
        let name = self.providers[provider].name();
        let of_model = |kind| self.state.circuit(name, MODEL, kind);
        let all = [self.state.circuit_breakers.get(name), of_model(AnswerKind::Whole), of_model(AnswerKind::Stream)];
        Circuits(all.map(|circuit| circuit.expect("both are configured")))
    }
}

/// The circuits that a request to a provider may meet.
struct Circuits([Arc<CircuitBreaker>; 3]);

impl Circuits {
    /// The one that is furthest from closed.
    fn worst(&self) -> &CircuitBreaker {
        let rank = |state| match state {
            CircuitState::Open => 2,
            CircuitState::Closed => 0,
            _ => 1,
        };
        // Of equals the last one.
        self.0.iter().max_by_key(|circuit| rank(circuit.state())).expect("there are three")
    }

    fn trips(&self) -> u64 {
        self.0.iter().map(|circuit| circuit.trip_count()).sum()
    }
}
