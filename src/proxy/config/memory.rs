//! How much memory this process may use: the machine's, or the limit of a control group.

use std::path::Path;

/// In bytes. `None` if the system does not tell.
pub(super) fn of_this_process() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| of_machine(&text));
    let groups = read("/proc/self/cgroup").map(|text| groups(&text)).unwrap_or_default();
    groups.iter().filter_map(|file| read(file)?.trim().parse().ok()).chain(machine).min()
}

fn of_machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The files with the limits of a process's control groups and of the groups around them. A file without a limit holds
/// `max`, or in version 1 of control groups a number beyond every machine's memory.
fn groups(cgroup: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in cgroup.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        // In a container the path is the host's, but the root is the container's.
        let within = Path::new(path).ancestors().filter_map(Path::to_str).map(|path| path.trim_end_matches('/'));
        files.extend(within.map(|path| format!("{root}{path}/{file}")));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_the_machine_and_the_limits_of_both_versions_of_control_groups_are_found() {
        assert_eq!(of_machine("MemFree: 1 kB\nMemTotal:       24604028 kB\n"), Some(24_604_028 * 1024));
        assert_eq!(of_machine("MemTotal: lots"), None);
        assert_eq!(
            groups("0::/a/b\n"),
            ["/sys/fs/cgroup/a/b/memory.max", "/sys/fs/cgroup/a/memory.max", "/sys/fs/cgroup/memory.max"]
        );
        let first = groups("5:cpu,cpuacct:/x\n4:memory:/docker\n");
        let root = "/sys/fs/cgroup/memory";
        assert_eq!(first, [format!("{root}/docker/memory.limit_in_bytes"), format!("{root}/memory.limit_in_bytes")]);
        assert!(groups("garbage").is_empty());
    }
}
