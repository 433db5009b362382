//! `fusebox`, the LLM gateway: arguments, configuration, run.

use std::future::Future;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand, ValueEnum};
use fusebox::proxy::{AppState, GatewayConfig, demo, run_server};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tracing_subscriber::EnvFilter;

/// An LLM gateway that fails over without losing a request.
#[derive(Parser)]
#[command(version, about)]
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

#[derive(Subcommand)]
enum Command {
    /// Run the gateway.
    Serve {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Check a configuration and print what would be done.
    Check {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Watch a gateway lose a provider, with two simulated ones in this process.
    Demo(demo::Options),
}

/// `EX_USAGE` of sysexits.h: the configuration is wrong.
const EXIT_CONFIG: u8 = 64;

fn main() -> ExitCode {
    let Arguments { command, log } = Arguments::parse();
    match command {
        Command::Check { config } => match GatewayConfig::from_file(&config) {
            Ok(plan) => {
                print!("{plan}");
                for warning in plan.warnings() {
                    eprintln!("fusebox: warning: {warning}");
                }
                ExitCode::SUCCESS
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
    }
}

fn reject(path: &Path, errors: &fusebox::proxy::ConfigErrors) -> ExitCode {
    for mistake in errors.mistakes() {
        eprintln!("{mistake}");
    }
    eprintln!("fusebox: {} cannot be used, {} to be corrected", path.display(), errors.mistakes().len());
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
    match runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(work)) {
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

/// Completes on Ctrl-C, and on SIGTERM where there is one.
async fn shutdown() {
    let interrupted = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .expect("SIGTERM can be listened for");
        tokio::select! {
            _ = interrupted => {}
            _ = terminated.recv() => {}
        }
    }
    #[cfg(not(unix))]
    let _ = interrupted.await;
}
