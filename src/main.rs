//! `fusebox`, the LLM gateway: it reads the arguments and the configuration, and runs what the library provides.

mod ctl;
mod demo;
mod log_file;

use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use fusebox::proxy::{AppState, GatewayConfig, check_descriptors, log, look_online, run_server};
use log_file::LogFile;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::oneshot;

/// An LLM gateway that fails over without losing a request.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// The format of the log on standard error. `RUST_LOG` sets what is logged.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

const EXAMPLES: &str = "\
Examples:
  fusebox demo      watch it at work, without a provider or a key
  fusebox init      write fusebox.toml, which you then edit
  fusebox check     report mistakes in it, and show what it means
  fusebox serve     run the gateway

Exit codes: 0 ended as told; 1 could not start or go on, or was told to end twice; 2 wrong command line;
64 wrong configuration.";

#[derive(Subcommand)]
enum Command {
    /// Run the gateway.
    #[command(after_help = "\
Examples:
  fusebox serve
  fusebox serve --config /etc/fusebox/fusebox.toml --log json 2> fusebox.log > access.log
  RUST_LOG=fusebox=debug fusebox serve

SIGHUP reloads the configuration. SIGTERM and Ctrl-C let requests in flight finish; a second one ends at once.")]
    Serve {
        /// The configuration file.
        #[arg(long, default_value = DEFAULT_FILE)]
        config: PathBuf,
    },
    /// Check a configuration and show what it means.
    #[command(after_help = "\
Examples:
  fusebox check
  fusebox check --config /etc/fusebox/fusebox.toml
  fusebox check --online

Mistakes and warnings go to standard error, one line each. With mistakes the exit code is 64.")]
    Check {
        /// The configuration file.
        #[arg(long, default_value = DEFAULT_FILE)]
        config: PathBuf,
        /// Also ask each provider for its models, and show what it said. The exit code is 1 unless all answer well.
        #[arg(long)]
        online: bool,
    },
    /// Write a configuration that has and explains every setting.
    #[command(after_help = "\
Examples:
  fusebox init                  writes fusebox.toml, unless it exists
  fusebox init - | less         shows it")]
    Init {
        /// The file to write, which must not exist; `-` for standard output.
        #[arg(default_value = DEFAULT_FILE)]
        file: PathBuf,
    },
    /// Watch a gateway lose one of two simulated providers.
    #[command(after_help = "\
Examples:
  fusebox demo                                       press keys to break and heal a provider
  fusebox demo --outage 10s                          break and heal it once, and report what clients noticed
  fusebox demo --outage 5s --fault hang --json       the same for a script")]
    Demo(demo::Options),
    /// Run one simulated provider, to try a gateway with.
    #[command(after_help = "\
Examples:
  fusebox simulate --listen 127.0.0.1:9000
  curl -X POST http://127.0.0.1:9000/simulate/500      it answers 500
  curl -X POST http://127.0.0.1:9000/simulate/heal     it answers well again

It answers any model's chat completions, responses, embeddings and messages with the same few words.")]
    Simulate(demo::Simulation),
    /// Look at a running gateway's circuits, and change them: the admin API.
    #[command(after_help = "\
Examples:
  fusebox ctl circuits
  fusebox ctl isolate primary --reason 'their incident 1234' --for 30m
  fusebox ctl isolate primary gpt-4o stream --reason 'cut off since 12:00'
  fusebox ctl release primary
  FUSEBOX_ADMIN_TOKEN=... fusebox ctl --url https://gateway:8081 watch

It needs server.admin_listen in the configuration of the gateway.")]
    Ctl(Box<ctl::Options>),
    /// Print the completions for a shell.
    #[command(after_help = "\
Examples:
  fusebox completions bash > /etc/bash_completion.d/fusebox
  fusebox completions zsh > ~/.zfunc/_fusebox
  fusebox completions fish > ~/.config/fish/completions/fusebox.fish")]
    Completions { shell: clap_complete::Shell },
    /// Write the man pages, one for each subcommand.
    #[command(after_help = "\
Examples:
  fusebox man /usr/local/share/man/man1 && man fusebox-serve")]
    Man {
        /// The folder to write them to, which must exist.
        folder: PathBuf,
    },
}

const DEFAULT_FILE: &str = "fusebox.toml";

/// `EX_USAGE` of sysexits.h: the configuration is wrong.
const EXIT_CONFIG: u8 = 64;

fn main() -> ExitCode {
    let Arguments { command, log } = Arguments::parse();
    match command {
        Command::Check { config, online } => match GatewayConfig::from_file(&config) {
            Ok(plan) => {
                for warning in plan.warnings() {
                    complain(&format!("fusebox: warning: {warning}"));
                }
                let shown = print(plan.to_string().as_bytes());
                if online {
                    exit_code(shown.and_then(|()| run(Builder::new_current_thread(), look(plan))))
                } else {
                    exit_code(shown)
                }
            }
            Err(errors) => reject(&config, &errors),
        },
        Command::Serve { config: file } => match GatewayConfig::from_file(&file) {
            Ok(config) => {
                let served = start_log(log, "info").and_then(|()| {
                    for warning in config.warnings() {
                        tracing::warn!("{warning}");
                    }
                    // One thread is enough: clients are served by threads of their own.
                    run(Builder::new_current_thread(), serve(file, config))
                });
                log::end();
                exit_code(served)
            }
            Err(errors) => reject(&file, &errors),
        },
        Command::Demo(options) => {
            // The demo shows the circuits itself, so only errors are logged.
            let shown = start_log(log, "error")
                // SIGHUP, from a terminal that is closed, ends the demo.
                .and_then(|()| Ok(on_signals(|| std::process::exit(1))?))
                .and_then(|told_to_end| run(Builder::new_multi_thread(), demo::run(options, told_to_end)));
            log::end();
            exit_code(shown)
        }
        Command::Simulate(options) => exit_code(
            on_signals(|| std::process::exit(1))
                .map_err(Into::into)
                .and_then(|told_to_end| run(Builder::new_current_thread(), demo::simulate(options, told_to_end))),
        ),
        Command::Ctl(options) => {
            let print = |text: &str| print(text.as_bytes());
            exit_code(run(Builder::new_current_thread(), ctl::run(*options, print)))
        }
        Command::Init { file } => exit_code(init(&file)),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), env!("CARGO_PKG_NAME"), &mut script);
            exit_code(print(&script))
        }
        Command::Man { folder } => exit_code(man(&folder)),
    }
}

fn init(file: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let text = include_bytes!("../fusebox.example.toml");
    if file == Path::new("-") {
        return print(text);
    }
    let new = std::fs::File::create_new(file).and_then(|mut new| new.write_all(text));
    new.map_err(|error| format!("{} cannot be written: {error}", file.display()))?;
    print(format!("{} is written. Edit it, then run `fusebox check --config {0}`\n", file.display()).as_bytes())
}

fn man(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let written = clap_mangen::generate_to(Arguments::command(), folder);
    written.map_err(|error| format!("man pages cannot be written to {}: {error}", folder.display()).into())
}

/// Unlike `print!`, it does not panic if standard output is closed.
fn print(text: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
    let mut output = std::io::stdout().lock();
    output.write_all(text).and_then(|()| output.flush()).map_err(|error| format!("standard output: {error}").into())
}

fn reject(path: &Path, errors: &fusebox::proxy::ConfigErrors) -> ExitCode {
    let exists = path.exists();
    for mistake in errors.mistakes() {
        complain(mistake);
    }
    let path = path.display();
    if exists {
        complain(&format!("fusebox: {path} cannot be used: {} to be corrected", errors.mistakes().len()));
    } else {
        complain(&format!("fusebox: run `fusebox init {path}` to create it"));
    }
    ExitCode::from(EXIT_CONFIG)
}

/// Unlike `eprintln!`, it does not panic if standard error is closed.
fn complain(text: &str) {
    // An error can be reported nowhere.
    let _ = writeln!(std::io::stderr(), "{text}");
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn start_log(format: LogFormat, filter: &str) -> Outcome {
    let format = match format {
        LogFormat::Text => log::Format::Text,
        LogFormat::Json => log::Format::Json,
    };
    log::start(format, filter)
}

fn run(mut runtime: Builder, work: impl Future<Output = Outcome>) -> Outcome {
    let runtime = runtime.enable_all().build()?;
    runtime.block_on(work)
}

fn exit_code(result: Result<(), Box<dyn std::error::Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("fusebox: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn look(config: GatewayConfig) -> Outcome {
    let seen = look_online(AppState::new(&config)?).await;
    let lines: Vec<_> = seen.iter().map(ToString::to_string).collect();
    print(format!("\n{}\n", lines.join("\n")).as_bytes())?;
    let bad: Vec<_> = seen.iter().filter(|seen| !seen.is_good()).map(|seen| seen.provider.as_str()).collect();
    if bad.is_empty() { Ok(()) } else { Err(format!("no good answer from {}", bad.join(", ")).into()) }
}

async fn serve(file: PathBuf, config: GatewayConfig) -> Outcome {
    // The limit of open files bounds the connections, so it is raised as far as possible. If that fails, the old limit
    // holds.
    #[cfg(unix)]
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    check_descriptors(&config.server)?;
    let log_file = config.server.access_log_file.as_deref().map(LogFile::open).transpose()?;
    let state = match &log_file {
        Some(log) => AppState::with_access_log(&config, log.writer())?,
        None => AppState::with_access_log(&config, standard_output()?)?,
    };
    state.set_file(file.clone());
    // Before "listening" is logged: until signals are handled, SIGHUP ends the process.
    let told_to_end = on_signals({
        let reload = reload(Arc::clone(&state), file);
        move || {
            log_file.iter().for_each(LogFile::reopen);
            reload();
        }
    })?;
    let listener = bind("server.listen", config.server.listen).await?;
    let admin = match config.server.admin_listen {
        Some(address) => Some(bind("server.admin_listen", address).await?),
        None => None,
    };
    tracing::info!(address = %listener.local_addr()?, providers = config.providers.len(), "listening");
    if let Some(admin) = &admin {
        tracing::info!(address = %admin.local_addr()?, "listening for operators");
    }
    // Whoever connects from now on waits until it is accepted.
    tell_systemd(Stage::Ready);
    let told_to_end = async {
        told_to_end.await;
        tell_systemd(Stage::Stopping);
    };
    run_server(state, listener, admin, told_to_end).await?;
    Ok(())
}

#[derive(Clone, Copy)]
enum Stage {
    Ready,
    Reloading,
    Stopping,
}

/// Tells systemd how far the gateway is, if its unit has `Type=notify` (`sd_notify(3)`).
fn tell_systemd(stage: Stage) {
    #[cfg(target_os = "linux")]
    {
        use sd_notify::NotifyState::{self, Ready, Reloading, Stopping};
        let told = match stage {
            Stage::Ready => sd_notify::notify(&[Ready]),
            Stage::Reloading => NotifyState::monotonic_usec_now().and_then(|now| sd_notify::notify(&[Reloading, now])),
            Stage::Stopping => sd_notify::notify(&[Stopping]),
        };
        if let Err(error) = told {
            tracing::warn!(%error, "systemd cannot be told");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = stage;
}

/// Standard output without the write for each line that Rust's own makes.
fn standard_output() -> std::io::Result<impl std::io::Write + Send + 'static> {
    #[cfg(unix)]
    let output = {
        use std::os::fd::AsFd;
        std::fs::File::from(std::io::stdout().as_fd().try_clone_to_owned()?)
    };
    #[cfg(not(unix))]
    let output = std::io::stdout();
    Ok(std::io::BufWriter::new(output))
}

/// The handler of SIGHUP. It reloads the file on a thread of its own, since reading the file may hang.
fn reload(state: Arc<AppState>, file: PathBuf) -> impl Fn() + Send + 'static {
    let under_way = Arc::new(());
    move || {
        // Reading a file has a time limit, so that earlier reloads will end.
        if Arc::strong_count(&under_way) > MAX_RELOADS {
            tracing::warn!("SIGHUP is ignored, since earlier ones still wait for their files");
            return;
        }
        let (state, file, place) = (Arc::clone(&state), file.clone(), Arc::clone(&under_way));
        let reload = move || {
            tell_systemd(Stage::Reloading);
            state.reload_file(&file);
            tell_systemd(Stage::Ready);
            drop(place);
        };
        if let Err(error) = std::thread::Builder::new().name("reload".into()).spawn(reload) {
            tracing::warn!(%error, "SIGHUP is ignored, since no thread can be started for it");
        }
    }
}

const MAX_RELOADS: usize = 16;

async fn bind(field: &str, address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| format!("{field}: {address} cannot be bound: {error}"))
}

/// Handles signals from now on, on a thread of its own: even if everything else is stuck, the second one ends the
/// process. The future completes when the process is told to end.
fn on_signals(reload: impl Fn() + Send + 'static) -> std::io::Result<impl Future<Output = ()> + Send> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let mut signals = {
        let _inside = runtime.enter();
        Signals::new()?
    };
    let (tell, told) = oneshot::channel();
    let listen = async move {
        let mut tell = Some(tell);
        loop {
            match signals.next().await {
                Signal::Reload => reload(),
                Signal::End => match tell.take() {
                    // The receiver is gone if the work is over already.
                    Some(tell) => drop(tell.send(())),
                    None => end_at_once(),
                },
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(listen))?;
    Ok(async {
        // An error says that the thread has panicked. Then no signal could end the process in good order any more.
        let _ = told.await;
    })
}

/// Ends the process, after saying so unless that takes long.
fn end_at_once() {
    let (said, is_said) = std::sync::mpsc::channel::<()>();
    let saying = std::thread::Builder::new().spawn(move || {
        complain("fusebox: ended by a second signal");
        drop(said);
    });
    if saying.is_ok() {
        let _ = is_said.recv_timeout(std::time::Duration::from_millis(500));
    }
    std::process::exit(1);
}

enum Signal {
    Reload,
    End,
}

#[cfg(unix)]
struct Signals {
    hangup: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.hangup.recv() => Signal::Reload,
            _ = self.interrupt.recv() => Signal::End,
            _ = self.terminate.recv() => Signal::End,
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    #[expect(clippy::unnecessary_wraps, reason = "as of Unix")]
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> Signal {
        let _ = tokio::signal::ctrl_c().await;
        Signal::End
    }
}
