//! Replacing the configuration by a file that has changed.

use std::path::Path;
use std::sync::atomic::Ordering;

use tracing::{error, info, warn};

use super::AppState;
use crate::error::Escaped;
use crate::proxy::config::GatewayConfig;

impl AppState {
    /// Reads a file and applies it, as [`reload`](Self::reload). If it cannot be used or has no providers, nothing
    /// changes: a file that is being written is empty for a moment. Logs the result, and returns whether the file was
    /// applied.
    pub fn reload_file(&self, path: &Path) -> bool {
        self.reload_from(path).is_ok()
    }

    /// The same. Returns the warnings, or the mistakes.
    pub(crate) fn reload_from(&self, path: &Path) -> Result<Vec<String>, Vec<String>> {
        let number = self.begin_reload();
        let applied = GatewayConfig::from_file(path)
            .map_err(|errors| errors.mistakes().to_vec())
            .and_then(|config| if config.providers.is_empty() { Err(vec![no_providers(path)]) } else { Ok(config) })
            .and_then(|config| {
                self.reload_as(number, &config).map(|()| config).map_err(|error| vec![error.to_string()])
            });
        let (counter, result) = match applied {
            Ok(config) => {
                let mut warnings = config.warnings().to_vec();
                warnings.extend(self.not_applied(&config));
                for warning in &warnings {
                    warn!("{warning}");
                }
                info!(file = %path.display(), providers = config.providers.len(), "configuration reloaded");
                (&self.metrics.reloads, Ok(warnings))
            }
            Err(mistakes) => {
                for mistake in &mistakes {
                    error!("{mistake}");
                }
                error!(file = %path.display(), "configuration not reloaded, the old one stays in force");
                (&self.metrics.failed_reloads, Err(mistakes))
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
        result
    }

    fn not_applied(&self, config: &GatewayConfig) -> Vec<String> {
        let (old, new) = (&self.started_with, &config.server);
        [
            ("server.listen", old.listen != new.listen),
            ("server.cores", old.cores != new.cores),
            ("server.admin_listen", old.admin_listen != new.admin_listen),
            ("server.max_connections", old.max_connections != new.max_connections),
            ("server.state_file", old.state_file != new.state_file),
            ("server.access_log_file", old.access_log_file != new.access_log_file),
            ("fleet", self.fleet_started_with != config.fleet),
            ("traces", self.traces_started_with != config.traces),
        ]
        .iter()
        .filter(|(_, differs)| *differs)
        .map(|(field, _)| format!("{field} has changed, which takes effect after a restart"))
        .collect()
    }
}

fn no_providers(path: &Path) -> String {
    format!("{}: providers are missing, expected one at least", Escaped(path.display()))
}
