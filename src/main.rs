//! `fusebox`, the LLM gateway: arguments, configuration, run. What it then does is in the library.

use std::future::Future;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use fusebox::proxy::{AppState, GatewayConfig, demo, run_server};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tracing_subscriber::EnvFilter;

/// An LLM gateway that fails over without losing a request.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// How to write the log, which goes to standard error. `RUST_LOG` sets what is logged.
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
  fusebox init      write fusebox.toml, to be edited
  fusebox check     say what is wrong or odd in it, and what would be done
  fusebox serve     run it

Exit codes: 0 it was told to end, and did; 1 it could not start or go on, or was told to end twice; 2 the command line is wrong;
64 the configuration is.";

#[derive(Subcommand)]
enum Command {
    /// Run the gateway.
    #[command(after_help = "\
Examples:
  fusebox serve
  fusebox serve --config /etc/fusebox/fusebox.toml --log json 2> fusebox.log > access.log
  RUST_LOG=fusebox=debug fusebox serve

SIGHUP reads the configuration again. SIGTERM and Ctrl-C let requests in flight finish; once more, and they do not.")]
    Serve {
        /// The configuration file.
        #[arg(long, default_value = DEFAULT_FILE)]
        config: PathBuf,
    },
    /// Check a configuration and print what would be done.
    #[command(after_help = "\
Examples:
  fusebox check
  fusebox check --config /etc/fusebox/fusebox.toml && systemctl reload fusebox

Mistakes and warnings go to standard error, a line each; with mistakes the exit code is 64.")]
    Check {
        /// The configuration file.
        #[arg(long, default_value = DEFAULT_FILE)]
        config: PathBuf,
    },
    /// Write a commented configuration that has every setting.
    #[command(after_help = "\
Examples:
  fusebox init                  writes fusebox.toml, unless it is there
  fusebox init - | less         shows it")]
    Init {
        /// The file to write, which must not exist; `-` for standard output.
        #[arg(default_value = DEFAULT_FILE)]
        file: PathBuf,
    },
    /// Watch a gateway lose a provider, with two simulated ones in this process.
    #[command(after_help = "\
Examples:
  fusebox demo                                       keys break a provider, and heal it
  fusebox demo --outage 10s                          it does so by itself, and says what clients noticed
  fusebox demo --outage 5s --fault hang --json       the same for a script")]
    Demo(demo::Options),
    /// Print completions for a shell.
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
        /// The folder to write them to, which has to be there.
        folder: PathBuf,
    },
}

const DEFAULT_FILE: &str = "fusebox.toml";

/// `EX_USAGE` of sysexits.h: the configuration is wrong.
const EXIT_CONFIG: u8 = 64;

fn main() -> ExitCode {
    let Arguments { command, log } = Arguments::parse();
    match command {
        Command::Check { config } => match GatewayConfig::from_file(&config) {
            Ok(plan) => {
                for warning in plan.warnings() {
                    eprintln!("fusebox: warning: {warning}");
                }
                exit_code(print(plan.to_string().as_bytes()))
            }
            Err(errors) => reject(&config, &errors),
        },
        Command::Serve { config: file } => match GatewayConfig::from_file(&file) {
            Ok(config) => {
                start_log(log, "info");
                for warning in config.warnings() {
                    tracing::warn!("{warning}");
                }
                // Clients have threads of their own.
                run(Builder::new_current_thread(), serve(file, config))
            }
            Err(errors) => reject(&file, &errors),
        },
        Command::Demo(options) => {
            // It shows the circuits itself.
            start_log(log, "error");
            run(Builder::new_multi_thread(), demo::run(options, shutdown()))
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
    print(format!("{} is written: edit it, then run `fusebox check --config {0}`\n", file.display()).as_bytes())
}

fn man(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let written = clap_mangen::generate_to(Arguments::command(), folder);
    written.map_err(|error| format!("man pages cannot be written to {}: {error}", folder.display()).into())
}

/// Unlike `print!` it does not panic where nobody reads it any more.
fn print(text: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
    let mut output = std::io::stdout().lock();
    output.write_all(text).and_then(|()| output.flush()).map_err(|error| format!("standard output: {error}").into())
}

fn reject(path: &Path, errors: &fusebox::proxy::ConfigErrors) -> ExitCode {
    for mistake in errors.mistakes() {
        eprintln!("{mistake}");
    }
    if path.exists() {
        eprintln!("fusebox: {} cannot be used, {} to be corrected", path.display(), errors.mistakes().len());
    } else {
        eprintln!("fusebox: `fusebox init {}` writes one", path.display());
    }
    ExitCode::from(EXIT_CONFIG)
}

fn start_log(format: LogFormat, default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

fn run(mut runtime: Builder, work: impl Future<Output = Result<(), Box<dyn std::error::Error>>>) -> ExitCode {
    let runtime = runtime.enable_all().build();
    exit_code(runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(work)))
}

fn exit_code(result: Result<(), Box<dyn std::error::Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fusebox: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(file: PathBuf, config: GatewayConfig) -> Result<(), Box<dyn std::error::Error>> {
    let state = AppState::with_access_log(&config, standard_output()?)?;
    // Before anybody is told that it runs: until then the signal ends the process.
    let reloading = reload_on_sighup(Arc::clone(&state), file)?;
    let listener = bind("server.listen", config.server.listen).await?;
    let admin = match config.server.admin_listen {
        Some(address) => Some(bind("server.admin_listen", address).await?),
        None => None,
    };
    tracing::info!(address = %listener.local_addr()?, providers = config.providers.len(), "listening");
    if let Some(admin) = &admin {
        tracing::info!(address = %admin.local_addr()?, "listening for operators");
    }
    tokio::spawn(reloading);
    run_server(state, listener, admin, shutdown()).await?;
    Ok(())
}

/// Without the write for each line that Rust's own standard output makes.
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

/// From now on; what is returned has to be polled for it.
#[cfg(unix)]
fn reload_on_sighup(state: Arc<AppState>, file: PathBuf) -> std::io::Result<impl Future<Output = ()> + Send> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangups = signal(SignalKind::hangup())?;
    Ok(async move {
        while hangups.recv().await.is_some() {
            let (state, file) = (Arc::clone(&state), file.clone());
            // A panic in there has been printed, and the next signal gets its chance.
            let _ = tokio::task::spawn_blocking(move || state.reload_file(&file)).await;
        }
    })
}

/// There is no such signal.
#[cfg(not(unix))]
fn reload_on_sighup(_: Arc<AppState>, _: PathBuf) -> std::io::Result<impl Future<Output = ()> + Send> {
    Ok(std::future::ready(()))
}

async fn bind(field: &str, address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| format!("{field}: {address} cannot be bound: {error}"))
}

/// Completes on Ctrl-C, and on SIGTERM where there is one. Who asks once more does not want to wait.
async fn shutdown() {
    let mut signals = Signals::new();
    signals.next().await;
    tokio::spawn(async move {
        signals.next().await;
        eprintln!("fusebox: ended by a second signal");
        std::process::exit(1);
    });
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| signal(kind).expect("it can be listened for");
        Self { interrupt: listen(SignalKind::interrupt()), terminate: listen(SignalKind::terminate()) }
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> Self {
        Self
    }

    async fn next(&mut self) {
        let _ = tokio::signal::ctrl_c().await;
    }
}
