//! The fields of `fusebox.toml`: which values are valid, and which are valid but probably not intended.
//!
//! Not here: TOML itself: `section`.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Duration;

use strum::VariantArray;
use toml::de::DeTable;

use super::fleet::read_fleet;
use super::section::{MAX_DURATION, Report, Section, Text};
use super::sent::{read_headers, read_key_header, read_keys, read_query};
use super::server::read_server;
use super::traces::read_traces;
use super::url::{is_private, read_url, warn_of_path};
use super::{Connections, Cooldowns, FailoverConfig, GatewayConfig, Limits, ProviderConfig, Strategy, Timeouts};
use crate::proxy::protocol::{Protocol, Protocols};
use crate::{Config, ConfigBuilder, ConfigError, silence};

pub(super) const MILLISECOND: Duration = Duration::from_millis(1);

pub(super) fn read(file: Option<&Path>, text: &str) -> Result<GatewayConfig, Vec<String>> {
    let mut report = Report::new(file, text);
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let at = error.span().map_or(0, |span| span.start);
        // The line itself is not shown: it may hold a secret.
        report.mistake(at, format_args!("not valid TOML: {}", error.message().trim()));
    }
    if !errors.is_empty() {
        return Err(report.finish().0);
    }

    let mut root = Section::new(String::new(), 0, root.into_inner(), &mut report);
    let mut strategy = Strategy::default();
    root.one_of("strategy", "\"priority\" or \"cheapest\"", &mut strategy);
    let (server_at, server) = root.table("server");
    let (connections_at, connections) = root.table("connections");
    let (timeouts_at, timeouts) = root.table("timeouts");
    let (limits_at, limits) = root.table("limits");
    let (breaker_at, breaker) = root.table("breaker");
    let (silence_at, silence) = root.table("silence");
    let (failover_at, failover) = root.table("failover");
    let (cooldown_at, cooldown) = root.table("cooldown");
    let (fleet_at, fleet) = root.table("fleet");
    let has_fleet = root.has("fleet");
    let (traces_at, traces) = root.table("traces");
    let has_traces = root.has("traces");
    let providers = root.tables("providers");
    if providers.is_empty() {
        root.warn("providers", "are missing: every request will be answered 404");
    }
    root.finish();

    let server = read_server(Section::new("server.".into(), server_at, server, &mut report));
    let mut defaults = Defaults::default();
    let section = Section::new("connections.".into(), connections_at, connections, &mut report);
    read_connections(section, &mut defaults.connections);
    read_timeouts(Section::new("timeouts.".into(), timeouts_at, timeouts, &mut report), &mut defaults.timeouts);
    read_limits(Section::new("limits.".into(), limits_at, limits, &mut report), &mut defaults.limits);
    if has_fleet {
        defaults.breaker = defaults.breaker.ramp(RAMP_OF_A_FLEET);
    }
    read_breaker(Section::new("breaker.".into(), breaker_at, breaker, &mut report), &mut defaults.breaker);
    read_silence(Section::new("silence.".into(), silence_at, silence, &mut report), &mut defaults.silence);
    let cooldowns = read_cooldowns(Section::new("cooldown.".into(), cooldown_at, cooldown, &mut report));
    let fleet = read_fleet(Section::new("fleet.".into(), fleet_at, fleet, &mut report), has_fleet);
    let traces = read_traces(Section::new("traces.".into(), traces_at, traces, &mut report), has_traces);
    let mut names = HashSet::new();
    let mut config = GatewayConfig {
        server,
        strategy,
        failover: FailoverConfig::default(),
        cooldowns,
        fleet,
        traces,
        providers: Vec::new(),
        warnings: Vec::new(),
    };
    let mut places = Vec::new();
    for (index, (at, table)) in providers.into_iter().enumerate() {
        let path = format!("providers[{index}].");
        let cheapest = strategy == Strategy::Cheapest;
        if let Some(provider) = read_provider(&path, at, table, &mut report, &defaults, &mut names, cheapest) {
            config.providers.push(provider);
            places.push(at);
        }
    }
    config.failover = read_failover(Section::new("failover.".into(), failover_at, failover, &mut report), &names);
    warn_of_lonely_models(&config, &places, &mut report);
    let (mistakes, warnings) = report.finish();
    config.warnings = warnings;
    if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
}

/// `places` are those of the providers.
fn warn_of_lonely_models(config: &GatewayConfig, places: &[usize], report: &mut Report<'_>) {
    for protocol in Protocol::VARIANTS {
        for (model, candidates) in config.candidates(*protocol) {
            let [only] = candidates[..] else { continue };
            let ProviderConfig { name, protocols, .. } = &config.providers[only];
            let has_others = config.providers.iter().filter(|it| it.models.contains_key(model)).count() > 1;
            if !has_others && *protocols == Protocols::Both && *protocol != Protocol::OpenAi {
                // It was said of the other protocol.
                continue;
            }
            let whose = protocol.name();
            let speaking = if has_others { format!(" that speaks {whose}'s protocol") } else { String::new() };
            report.warn(places[only], format_args!("the model {model:?} has no other provider{speaking} than {name}"));
        }
    }
}

/// The settings of a provider that has none of its own.
struct Defaults {
    connections: Connections,
    timeouts: Timeouts,
    limits: Limits,
    breaker: ConfigBuilder,
    silence: Silence,
}

/// A fleet learns at once that a provider is back, and its replicas must not all hit it at once.
const RAMP_OF_A_FLEET: Duration = Duration::from_secs(5);

/// The settings are kept even if detection is switched off: a provider may switch it on.
#[derive(Clone, Copy)]
struct Silence {
    enabled: bool,
    config: silence::ConfigBuilder,
}

impl Default for Defaults {
    /// A client should wait less long than a library's caller may, and the gateway should not hold any number of
    /// waiting clients. Failures have a memory, since a request from before an outage may be answered during it.
    fn default() -> Self {
        let breaker = Config::builder()
            .failure_memory(Duration::from_secs(600))
            .wait_limit(Duration::from_secs(10))
            .max_waiters(1000);
        let silence = Silence { enabled: true, config: silence::Config::builder() };
        let (connections, timeouts) = (Connections::default(), Timeouts::default());
        Self { connections, timeouts, limits: Limits::default(), breaker, silence }
    }
}

/// `names` are those of the providers.
fn read_failover(mut section: Section<'_, '_>, names: &HashSet<String>) -> FailoverConfig {
    let mut failover = FailoverConfig::default();
    section.one_of("when_all_open", "\"probe_early\" or \"refuse\"", &mut failover.when_all_open);
    let mut max_attempts = 0;
    section.count("max_attempts", 1..=100, &mut max_attempts);
    failover.max_attempts = Some(max_attempts).filter(|max| *max > 0);
    let expected = "the name of a provider";
    let longer = section.texts("fallback_on_context_length", expected);
    for (index, Text { shown, value }) in longer.into_iter().enumerate() {
        if names.contains(&value) {
            failover.fallback_on_context_length.push(value);
        } else {
            section.mistake(&format!("fallback_on_context_length[{index}]"), &shown, expected);
        }
    }
    section.finish();
    failover
}

fn read_cooldowns(mut section: Section<'_, '_>) -> Cooldowns {
    let mut cooldowns = Cooldowns::default();
    section.duration("max", MILLISECOND..=MAX_DURATION, &mut cooldowns.max);
    let has_default = section.any_duration("default");
    if let Some(default) = has_default {
        if (MILLISECOND..=cooldowns.max).contains(&default) {
            cooldowns.default = default;
        } else {
            let [is, longest] = [default, cooldowns.max].map(humantime::format_duration);
            section.mistake("default", &is.to_string(), &format!("1ms to cooldown.max, which is {longest}"));
        }
    }
    cooldowns.default = cooldowns.default.min(cooldowns.max);
    section.duration("key_cooldown", MILLISECOND..=MAX_DURATION / 6, &mut cooldowns.key);
    section.finish();
    cooldowns
}

fn read_connections(mut section: Section<'_, '_>, connections: &mut Connections) {
    section.count("max_idle", 0..=1_000_000, &mut connections.max_idle);
    section.duration("idle_limit", MILLISECOND..=MAX_DURATION, &mut connections.idle_limit);
    section.duration("max_age", MILLISECOND..=MAX_DURATION, &mut connections.max_age);
    section.finish();
}

fn read_timeouts(mut section: Section<'_, '_>, timeouts: &mut Timeouts) {
    let range = MILLISECOND..=MAX_DURATION;
    section.duration("connect", range.clone(), &mut timeouts.connect);
    section.duration("first_byte", range.clone(), &mut timeouts.first_byte);
    section.optional_duration("first_content", range.clone(), &mut timeouts.first_content);
    timeouts.min_rate = section.pieces_per_second("min_rate").or(timeouts.min_rate);
    section.duration("idle", range.clone(), &mut timeouts.idle);
    section.duration("total", range, &mut timeouts.total);
    section.finish();
}

fn read_limits(mut section: Section<'_, '_>, limits: &mut Limits) {
    let mut max_in_flight = limits.max_in_flight.unwrap_or_default();
    section.count("max_in_flight", 1..=1_000_000, &mut max_in_flight);
    limits.max_in_flight = Some(max_in_flight).filter(|max| *max > 0);
    section.count("max_waiting", 0..=1_000_000, &mut limits.max_waiting);
    section.duration("wait_limit", MILLISECOND..=MAX_DURATION, &mut limits.wait_limit);
    section.finish();
}

fn read_breaker(mut section: Section<'_, '_>, builder: &mut ConfigBuilder) {
    if let Some(failures) = section.any_count("failure_threshold") {
        check(&mut section, builder, |builder| builder.failure_threshold(failures));
    }
    if let Some(duration) = section.any_duration("failure_memory") {
        check(&mut section, builder, |builder| builder.failure_memory(duration));
    }
    if let Some(duration) = section.any_duration("open_for") {
        check(&mut section, builder, |builder| builder.open_for(duration));
    }
    if let Some(duration) = section.any_duration("ramp") {
        check(&mut section, builder, |builder| builder.ramp(duration));
    }
    if let Some(percent) = section.any_count("ramp_from") {
        check(&mut section, builder, |builder| builder.ramp_from(percent));
    }
    if let Some(duration) = section.any_duration("wait_limit") {
        check(&mut section, builder, |builder| builder.wait_limit(duration));
    }
    if let Some(waiters) = section.any_count("max_waiters") {
        check(&mut section, builder, |builder| builder.max_waiters(waiters as usize));
    }
    section.finish();
}

fn read_silence(mut section: Section<'_, '_>, silence: &mut Silence) {
    section.flag("enabled", &mut silence.enabled);
    let builder = &mut silence.config;
    if let Some(phi) = section.any_number("phi") {
        check(&mut section, builder, |builder| builder.phi(phi));
    }
    if let Some(floor) = section.any_duration("floor") {
        check(&mut section, builder, |builder| builder.floor(floor));
    }
    if let Some(ceiling) = section.any_duration("ceiling") {
        check(&mut section, builder, |builder| builder.ceiling(ceiling));
    }
    section.finish();
}

/// A builder that checks its own ranges.
trait Checked: Clone {
    fn check(&self) -> Result<(), ConfigError>;
}

impl Checked for ConfigBuilder {
    fn check(&self) -> Result<(), ConfigError> {
        self.clone().build().map(drop)
    }
}

impl Checked for silence::ConfigBuilder {
    fn check(&self) -> Result<(), ConfigError> {
        self.build().map(drop)
    }
}

fn check<B: Checked>(section: &mut Section<'_, '_>, builder: &mut B, set: impl FnOnce(B) -> B) {
    let new = set(builder.clone());
    match new.check() {
        Ok(()) => *builder = new,
        Err(error) => section.mistake(error.field(), error.value(), error.expected()),
    }
}

fn read_provider<'i>(
    path: &str,
    at: usize,
    table: DeTable<'i>,
    report: &mut Report<'i>,
    defaults: &Defaults,
    names: &mut HashSet<String>,
    cheapest: bool,
) -> Option<ProviderConfig> {
    let mut section = Section::new(path.to_owned(), at, table, report);
    let expected = "visible ASCII without spaces";
    let name = section.text("name", expected);
    section.require("name", expected);
    let name = name.filter(|name| {
        let usable = !name.value.is_empty() && name.value.bytes().all(|byte| byte.is_ascii_graphic());
        if !usable {
            section.mistake("name", &name.shown, expected);
        } else if !names.insert(name.value.clone()) {
            section.mistake("name", &name.shown, "a name that no other provider has");
        }
        usable
    });
    let url = read_url(&mut section, "url", "api_key");
    let mut protocols = Protocols::default();
    section.one_of("protocol", "\"openai\", \"anthropic\" or \"both\"", &mut protocols);
    let api_keys = read_keys(&mut section);
    let (key_header, key_prefix) = read_key_header(&mut section, protocols);
    let mut secrets = api_keys.clone();
    let headers = read_headers(&mut section, api_keys.first().map(|_| &key_header), &mut secrets);
    let query = read_query(&mut section, &mut secrets);
    if let Some(url) = &url {
        // Azure's has its version in the query.
        warn_of_path(&mut section, url, query.is_some());
    }
    if let Some(url) = &url
        && url.scheme_str() == Some("http")
        && !is_private(url.host().unwrap_or_default())
    {
        section.warn("url", "is a plain http URL of a public host: keys and prompts can be read in transit");
    }
    let models = read_models(&mut section);
    let (input_rate, output_rate) = (section.rate("input_rate"), section.rate("output_rate"));
    if cheapest {
        for field in ["input_rate", "output_rate"] {
            section.require(field, "a price, since the strategy is \"cheapest\"");
        }
    }
    let mut http2 = None;
    section.optional_flag("http2", &mut http2);
    let (connections_at, connections_table) = section.table("connections");
    let (timeouts_at, timeouts_table) = section.table("timeouts");
    let (limits_at, limits_table) = section.table("limits");
    let (breaker_at, breaker_table) = section.table("breaker");
    let (silence_at, silence_table) = section.table("silence");
    section.finish();

    let mut connections = defaults.connections.clone();
    let section = Section::new(format!("{path}connections."), connections_at, connections_table, report);
    read_connections(section, &mut connections);
    let mut timeouts = defaults.timeouts.clone();
    read_timeouts(Section::new(format!("{path}timeouts."), timeouts_at, timeouts_table, report), &mut timeouts);
    let mut limits = defaults.limits;
    read_limits(Section::new(format!("{path}limits."), limits_at, limits_table, report), &mut limits);
    let mut breaker = defaults.breaker.clone();
    read_breaker(Section::new(format!("{path}breaker."), breaker_at, breaker_table, report), &mut breaker);
    let breaker = breaker.probe_lease(lease(&timeouts)).build().expect("each setting was checked");
    let mut silence = defaults.silence;
    read_silence(Section::new(format!("{path}silence."), silence_at, silence_table, report), &mut silence);
    let silence = silence.enabled.then(|| silence.config.build().expect("each setting was checked"));
    Some(ProviderConfig {
        name: name?.value,
        url: url?,
        protocols,
        api_keys,
        key_header,
        key_prefix,
        headers,
        query,
        secrets,
        models,
        input_rate,
        output_rate,
        http2,
        connections,
        timeouts,
        limits,
        breaker,
        silence,
    })
}

/// A probe's lease. By its end the gateway has given the probe up or judged it: an answer that is no stream may take
/// `total` until its first byte.
fn lease(timeouts: &Timeouts) -> Duration {
    (timeouts.total + Duration::from_secs(1)).min(MAX_DURATION)
}

/// Each name decides who is asked, and is listed for clients.
const NO_PATTERN: &str = "a model's whole name: each model is listed, and there are no patterns";

fn read_models(section: &mut Section<'_, '_>) -> BTreeMap<String, String> {
    let before = section.report.mistakes();
    let mut models = BTreeMap::new();
    let named = section.texts("models", "a model's name");
    for (index, Text { shown, value }) in named.into_iter().enumerate() {
        if value.is_empty() {
            section.mistake(&format!("models[{index}]"), &shown, "a name");
        } else if value.contains('*') {
            section.mistake(&format!("models[{index}]"), &shown, NO_PATTERN);
        } else if models.insert(value.clone(), value).is_some() {
            section.mistake(&format!("models[{index}]"), &shown, "a name that is not in the list already");
        }
    }
    for (name, Text { shown, value }) in section.map("aliases", "the provider's name of a model") {
        if name.is_empty() || value.is_empty() {
            section.mistake(&format!("aliases.{name:?}"), &shown, "two names");
        } else if name.contains('*') || value.contains('*') {
            section.mistake(&format!("aliases.{name}"), &shown, NO_PATTERN);
        } else if models.insert(name.clone(), value).is_some() {
            section.mistake(&format!("aliases.{name}"), &shown, "a name that is not in models");
        }
    }
    if models.is_empty() && section.report.mistakes() == before {
        let is = if section.has("models") { "empty" } else { "missing" };
        section.mistake("models", is, "at least one model's name, there or in aliases");
    }
    models
}
