//! The contenders, and what each needs.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::process::wait_for;

/// In the order in which they take their turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Who {
    Nginx,
    Haproxy,
    Plain,
    Fusebox,
    /// fusebox that does not look whether a provider is silent.
    Without,
    /// The binary that `--other` names.
    Other,
}

impl Who {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Plain => "hyper + hyper-util",
            Self::Fusebox => "**fusebox**",
            Self::Without => "fusebox without silence",
            Self::Other => "other",
        }
    }

    /// The program that has to be installed.
    pub(crate) fn program(self) -> Option<&'static str> {
        match self {
            Self::Nginx => Some("nginx"),
            Self::Haproxy => Some("haproxy"),
            _ => None,
        }
    }
}

/// A process and those it started. It ends when this is dropped.
pub(crate) struct Running {
    child: Child,
    pub(crate) port: u16,
}

pub(crate) struct Setup<'a> {
    /// For configurations.
    pub(crate) folder: &'a Path,
    pub(crate) upstream: u16,
    pub(crate) cores: usize,
    pub(crate) fusebox: &'a Path,
    pub(crate) other: Option<&'a Path>,
}

pub(crate) fn start(who: Who, setup: &Setup<'_>, port: u16) -> Result<Running, String> {
    let Setup { folder, upstream, cores, .. } = *setup;
    let configuration = |name: &str, text: String| -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, text).expect("a temporary folder takes a file");
        path
    };
    let mut command;
    match who {
        Who::Nginx => {
            command = pinned("nginx", cores);
            command.arg("-c").arg(configuration("nginx.conf", nginx(folder, upstream, cores, port)));
        }
        Who::Haproxy => {
            command = pinned("haproxy", cores);
            command.arg("-db").arg("-f").arg(configuration("haproxy.cfg", haproxy(upstream, cores, port)));
        }
        Who::Plain => {
            command = pinned(std::env::current_exe().expect("this program"), cores);
            command.args(["plain", &port.to_string(), &upstream.to_string(), &cores.to_string()]);
        }
        Who::Fusebox | Who::Without | Who::Other => {
            let binary = if who == Who::Other { setup.other.ok_or("--other is missing")? } else { setup.fusebox };
            command = pinned(binary, cores);
            let mut text = fusebox(upstream, cores, port);
            if who == Who::Without {
                text += "[silence]\nenabled = false\n";
            }
            command.args(["serve", "--config"]).arg(configuration(&format!("{who:?}.toml"), text));
        }
    }
    let child =
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(|error| format!("{who:?}: {error}"))?;
    let running = Running { child, port };
    wait_for(port)?;
    Ok(running)
}

/// The upstream, on the last core, where the load is too.
pub(crate) fn start_upstream(port: u16, cores: usize) -> Result<Running, String> {
    let mut command = beside(std::env::current_exe().expect("this program"), cores);
    let child = command.args(["upstream", &port.to_string()]).spawn().map_err(|error| error.to_string())?;
    let running = Running { child, port };
    wait_for(port)?;
    Ok(running)
}

/// One core for a contender that may have one; with more they are shared with everything else.
fn pinned(program: impl AsRef<std::ffi::OsStr>, cores: usize) -> Command {
    on("0", program, cores == 1)
}

/// For what is not measured.
pub(crate) fn beside(program: impl AsRef<std::ffi::OsStr>, cores: usize) -> Command {
    on("1", program, cores == 1)
}

fn on(core: &str, program: impl AsRef<std::ffi::OsStr>, is_pinned: bool) -> Command {
    if !is_pinned {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", core]).arg(program);
    command
}

fn nginx(folder: &Path, upstream: u16, cores: usize, port: u16) -> String {
    let folder = folder.display();
    format!(
        "worker_processes {cores}; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 16384; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 75s; client_body_temp_path {folder}; proxy_temp_path {folder};
  upstream up {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} reuseport backlog=4096;
    location / {{
      proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ''; proxy_set_header Authorization 'Bearer k';
    }}
  }}
}}
"
    )
}

fn haproxy(upstream: u16, cores: usize, port: u16) -> String {
    format!(
        "global
  nbthread {cores}
  maxconn 8192
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend f
  bind 127.0.0.1:{port} backlog 4096
  default_backend b
backend b
  http-request set-header authorization 'Bearer k'
  server s 127.0.0.1:{upstream}
"
    )
}

/// Two providers, so that there is one to fail over to.
fn fusebox(upstream: u16, cores: usize, port: u16) -> String {
    let mut text = format!("[server]\nlisten = '127.0.0.1:{port}'\ncores = {cores}\nmax_connections = 16384\n");
    for name in ["a", "b"] {
        writeln!(
            text,
            "[[providers]]\nname = '{name}'\nurl = 'http://127.0.0.1:{upstream}/v1'\nmodels = ['json', 'burst', 'paced']\napi_key = 'k'"
        )
        .expect("a string");
    }
    text
}

impl Running {
    /// Its own and its children's.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let mut pids = vec![self.child.id()];
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
            if parent.and_then(|parent| parent.parse().ok()) == Some(self.child.id()) {
                pids.push(pid);
            }
        }
        pids
    }

    pub(crate) fn used(&self) -> Used {
        let mut used = Used::default();
        for pid in self.pids() {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            for thread in threads {
                let stat = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
                let mut numbers =
                    stat.split_whitespace().map(|number| Duration::from_nanos(number.parse().unwrap_or(0)));
                used.cpu += numbers.next().unwrap_or_default();
                used.waited += numbers.next().unwrap_or_default();
            }
        }
        used
    }

    /// In KiB.
    pub(crate) fn resident(&self) -> u32 {
        let of = |pid: u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or("0");
            line.trim().trim_end_matches(" kB").trim().parse().unwrap_or(0)
        };
        self.pids().into_iter().map(of).sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A master that is killed would leave its workers.
        for pid in self.pids().into_iter().rev() {
            let _ = Command::new("kill").arg(pid.to_string()).stderr(Stdio::null()).status();
        }
        let _ = self.child.wait();
    }
}

/// Of all threads.
#[derive(Clone, Copy, Default)]
pub(crate) struct Used {
    pub(crate) cpu: Duration,
    /// Ready to run, but not running.
    pub(crate) waited: Duration,
}
