//! The binary's command line: what it tells, what it writes, and how it ends.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use http::Response;

use crate::support::{Provider, answer, nobody, soon, temp_path};

const COMMANDS: [&str; 8] = ["serve", "check", "init", "demo", "simulate", "ctl", "completions", "man"];

/// A folder that is gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = temp_path(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn fusebox(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fusebox"))
        .args(arguments)
        .current_dir(folder)
        .env("FUSEBOX_TOKEN", "token")
        .env("OPENAI_API_KEY", "key")
        .env("AZURE_API_KEY", "key")
        .output()
        .unwrap()
}

/// Exit code, standard output, standard error.
fn told(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn init_writes_a_configuration_that_check_accepts_and_overwrites_none() {
    let folder = Folder::new("init");
    let (code, _, error) = told(fusebox(&folder.0, &["check"]));
    assert_eq!(code, 64);
    assert!(error.contains("fusebox.toml: cannot be read") && error.contains("`fusebox init fusebox.toml`"), "{error}");

    assert_eq!(told(fusebox(&folder.0, &["init"])).0, 0);
    let (code, plan, error) = told(fusebox(&folder.0, &["check"]));
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(plan.contains("openai"), "{plan}");

    std::fs::write(folder.0.join("fusebox.toml"), "mine").unwrap();
    let (code, _, error) = told(fusebox(&folder.0, &["init"]));
    assert_eq!(code, 1);
    assert!(error.contains("fusebox.toml cannot be written"), "{error}");
    assert_eq!(std::fs::read_to_string(folder.0.join("fusebox.toml")).unwrap(), "mine");

    let (code, shown, _) = told(fusebox(&folder.0, &["init", "-"]));
    assert_eq!((code, shown.as_str()), (0, include_str!("../../fusebox.example.toml")));
    assert!(!folder.0.join("-").exists());
}

#[test]
fn help_has_examples_for_every_command_and_completions_and_man_pages_know_them() {
    let folder = Folder::new("man");
    let (code, overview, _) = told(fusebox(&folder.0, &["--help"]));
    assert_eq!(code, 0);
    let (code, completions, _) = told(fusebox(&folder.0, &["completions", "bash"]));
    assert_eq!(code, 0);
    assert_eq!(told(fusebox(&folder.0, &["man", "."])).0, 0);
    for command in COMMANDS {
        assert!(overview.contains(&format!("\n  {command} ")), "{overview}");
        assert!(completions.contains(&format!("fusebox__subcmd__{command}")), "{command}: {completions}");
        let (code, help, _) = told(fusebox(&folder.0, &[command, "--help"]));
        assert!(code == 0 && help.contains("\nExamples:\n  fusebox "), "{help}");
        let page = std::fs::read_to_string(folder.0.join(format!("fusebox-{command}.1"))).unwrap();
        assert!(page.contains("Examples:"), "{page}");
    }
    // Those, `help` and nothing else.
    let listed = overview.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    assert_eq!(listed.count(), COMMANDS.len() + 1);
}

#[test]
fn a_wrong_command_line_ends_with_2_and_a_folder_that_is_not_there_with_1() {
    let folder = Folder::new("wrong");
    assert_eq!(told(fusebox(&folder.0, &["serves"])).0, 2);
    let (code, _, error) = told(fusebox(&folder.0, &["man", "nowhere"]));
    assert_eq!(code, 1);
    assert!(error.starts_with("fusebox: man pages cannot be written to nowhere: "), "{error}");
}

/// With a standard output that nobody reads.
fn unread(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let command =
        Command::new(env!("CARGO_BIN_EXE_fusebox")).args(arguments).current_dir(folder).stdout(writer).output();
    told(command.unwrap())
}

#[test]
fn a_closed_output_ends_the_program_without_a_panic() {
    let folder = Folder::new("gone");
    std::fs::write(
        folder.0.join("ok.toml"),
        "[[providers]]\nname = 'a'\nurl = 'http://127.0.0.1:1/v1'\nmodels = ['m']",
    )
    .unwrap();
    for arguments in [&["init", "-"][..], &["init"], &["completions", "bash"], &["check", "--config", "ok.toml"]] {
        let (code, _, error) = unread(&folder.0, arguments);
        assert_eq!(code, 1, "{error}");
        assert!(error.contains("fusebox: standard output: Broken pipe"), "{error}");
    }
}

#[tokio::test]
async fn a_demo_whose_output_is_closed_ends_and_does_not_panic() {
    let folder = Folder::new("gone-demo");
    for _ in 0..20 {
        let port = nobody().await.port().to_string();
        let (code, _, error) = unread(&folder.0, &["demo", "--port", &port]);
        // The demo uses the next port as well, which may be taken.
        if !error.contains("cannot be bound") {
            assert_eq!(code, 1, "{error}");
            assert!(error.contains("fusebox: Broken pipe"), "{error}");
            return;
        }
    }
    panic!("no two ports in a row are free");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_online_says_what_each_provider_answered_and_which_models_it_lacks() {
    let list = r#"{"object": "list", "data": [{"id": "m"}, {"id": "other"}]}"#;
    let good = Provider::start(move |_| Response::new(list.into())).await;
    let refusing = Provider::start(|_| answer(401)).await;
    let text = |providers: &[(&str, SocketAddr, &str)]| {
        let provider = |(name, address, models): &(&str, SocketAddr, &str)| {
            format!(
                "[[providers]]\nname = '{name}'\nurl = 'http://{address}/v1'\nmodels = [{models}]\napi_key = 'secret-1'\n"
            )
        };
        providers.iter().map(provider).collect::<String>()
    };
    let folder = Folder::new("online");
    let check = async |providers: &[(&str, SocketAddr, &str)]| {
        std::fs::write(folder.0.join("fusebox.toml"), text(providers)).unwrap();
        let folder = folder.0.clone();
        soon(tokio::task::spawn_blocking(move || told(fusebox(&folder, &["check", "--online"])))).await.unwrap()
    };
    let (code, shown, _) = check(&[("good", good.address, "'m'"), ("lacking", good.address, "'m', 'n'")]).await;
    assert_eq!(code, 0, "{shown}");
    let lines: Vec<_> = shown.lines().filter(|line| line.starts_with("online    ")).collect();
    assert!(
        lines[0].starts_with("online    good: 200 OK in ")
            && lines[0].ends_with("HTTP/1.1 without TLS; it lists all models")
    );
    assert!(
        lines[1].starts_with("online    lacking: 200 OK in ") && lines[1].ends_with("; it does not list n"),
        "{shown}"
    );
    assert_eq!(
        (good.last().path.as_str(), &good.last().headers["authorization"]),
        ("/v1/models", &"Bearer secret-1".parse().unwrap())
    );

    let (code, shown, said) = check(&[("refusing", refusing.address, "'m'"), ("away", nobody().await, "'m'")]).await;
    assert_eq!(code, 1);
    assert!(
        shown.contains("online    refusing: 401 Unauthorized in ") && shown.contains("; it refused the api_key\n"),
        "{shown}"
    );
    assert!(shown.contains("online    away: no answer in ") && shown.contains("Connection refused"), "{shown}");
    assert!(said.contains("fusebox: no good answer from refusing, away"), "{said}");
    assert!(!(shown + &said).contains("secret-1"));
}
