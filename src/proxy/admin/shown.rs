//! The configuration in use, without its secrets: the body of `GET /admin/v1/config`.

use serde_json::{Map, Value, json};

use crate::proxy::config::{Limits, ProviderConfig, ServerConfig, ServerTls, Strategy, Timeouts, Token, WhenAllOpen};
use crate::proxy::protocol::Protocols;
use crate::proxy::state::Live;

/// What stands for a secret.
const HIDDEN: &str = "***";

pub(super) fn config(live: &Live) -> Value {
    json!({
        "server": server(&live.server),
        "strategy": match live.strategy {
            Strategy::Priority => "priority",
            Strategy::Cheapest => "cheapest",
        },
        "failover": {
            "when_all_open": match live.failover.when_all_open {
                WhenAllOpen::ProbeEarly => "probe_early",
                WhenAllOpen::Refuse => "refuse",
            },
            "max_attempts": live.failover.max_attempts,
            "fallback_on_context_length": live.failover.fallback_on_context_length,
        },
        "cooldown": {
            "default": time(live.cooldowns.default),
            "max": time(live.cooldowns.max),
            "key_cooldown": time(live.cooldowns.key),
        },
        "providers": live.providers.iter().map(|it| provider(&it.config)).collect::<Vec<_>>(),
    })
}

fn server(server: &ServerConfig) -> Value {
    // Every field, so that a new one is not forgotten.
    let ServerConfig {
        listen,
        tls,
        cores,
        admin_listen,
        admin_tls,
        admin_tokens,
        state_file,
        auth_tokens,
        trusted_proxies,
        allow_provider_header,
        cors_origins,
        ca_file,
        access_log,
        access_log_file,
        max_body_bytes,
        replay_body_bytes,
        search_body_bytes,
        replay_answer_bytes,
        max_message_bytes,
        max_held_bytes,
        max_header_bytes,
        max_headers,
        max_connections,
        header_timeout,
        body_timeout,
        write_timeout,
        heartbeat_after,
        heartbeat,
        drain_delay,
        drain_limit,
    } = server;
    json!({
        "listen": listen,
        "tls": tls.as_ref().map(files),
        "cores": cores,
        "admin_listen": admin_listen,
        "admin_tls": admin_tls.as_ref().map(files),
        "admin_tokens": tokens(admin_tokens),
        "state_file": state_file,
        "auth_tokens": tokens(auth_tokens),
        "trusted_proxies": trusted_proxies.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "allow_provider_header": allow_provider_header,
        "cors": {"origins": cors_origins.iter().filter_map(|it| it.to_str().ok()).collect::<Vec<_>>()},
        "ca_file": ca_file,
        "access_log": access_log,
        "access_log_file": access_log_file,
        "max_body_bytes": max_body_bytes,
        "replay_body_bytes": replay_body_bytes,
        "search_body_bytes": search_body_bytes,
        "replay_answer_bytes": replay_answer_bytes,
        "max_message_bytes": max_message_bytes,
        "max_held_bytes": max_held_bytes,
        "max_header_bytes": max_header_bytes,
        "max_headers": max_headers,
        "max_connections": max_connections,
        "header_timeout": time(*header_timeout),
        "body_timeout": time(*body_timeout),
        "write_timeout": time(*write_timeout),
        "heartbeat_after": heartbeat_after.map(time),
        "heartbeat": time(*heartbeat),
        "drain_delay": time(*drain_delay),
        "drain_limit": time(*drain_limit),
    })
}

fn provider(provider: &ProviderConfig) -> Value {
    let ProviderConfig {
        name,
        url,
        protocols,
        api_keys,
        key_header,
        key_prefix,
        headers,
        query,
        secrets: _,
        models,
        input_rate,
        output_rate,
        http2,
        connections,
        timeouts,
        limits,
        breaker,
        silence,
    } = provider;
    let Timeouts { connect, idle, total, min_rate, .. } = timeouts;
    let Limits { max_in_flight, max_waiting, wait_limit, .. } = limits;
    // A header may hold a key as well, so that only the names are shown.
    let headers: Map<_, _> = headers.keys().map(|name| (name.as_str().to_owned(), json!(HIDDEN))).collect();
    let query = query.as_ref().map_or("", |query| query.expose()).split('&');
    let query: Map<_, _> = query
        .filter_map(|pair| pair.split('=').next().filter(|name| !name.is_empty()))
        .map(|name| (name.to_owned(), json!(HIDDEN)))
        .collect();
    json!({
        "name": name,
        "url": url.to_string(),
        "protocol": match protocols {
            Protocols::OpenAi => "openai",
            Protocols::Anthropic => "anthropic",
            Protocols::Both => "both",
        },
        "api_keys": api_keys.iter().map(|_| HIDDEN).collect::<Vec<_>>(),
        "key_header": key_header.as_str(),
        "key_prefix": key_prefix,
        "headers": headers,
        "query": query,
        "models": models,
        "input_rate": input_rate,
        "output_rate": output_rate,
        "http2": http2,
        "connections": {
            "max_idle": connections.max_idle,
            "idle_limit": time(connections.idle_limit),
            "max_age": time(connections.max_age),
        },
        "timeouts": {
            "connect": time(*connect),
            "first_byte": time(timeouts.first_byte()),
            "first_content": time(timeouts.first_content()),
            "min_rate": min_rate,
            "idle": time(*idle),
            "total": time(*total),
        },
        "limits": {
            "max_in_flight": max_in_flight,
            "max_waiting": max_waiting,
            "wait_limit": time(*wait_limit),
        },
        "breaker": {
            "failure_threshold": breaker.failure_threshold(),
            "failure_memory": breaker.failure_memory().map(time),
            "open_for": time(breaker.open_for()),
            "ramp": time(breaker.ramp()),
            "ramp_from": breaker.ramp_from(),
            "wait_limit": time(breaker.wait_limit()),
            "max_waiters": breaker.max_waiters(),
        },
        "silence": {
            "enabled": silence.is_some(),
            "phi": silence.map(|silence| silence.phi()),
            "floor": silence.map(|silence| time(silence.floor())),
            "ceiling": silence.and_then(|silence| silence.ceiling()).map(time),
        },
    })
}

fn files(tls: &ServerTls) -> Value {
    json!({"cert": tls.cert, "key": tls.key, "client_ca": tls.client_ca})
}

fn tokens(tokens: &[Token]) -> Value {
    tokens.iter().map(|token| json!({"name": token.name, "token": HIDDEN})).collect()
}

fn time(time: std::time::Duration) -> String {
    humantime::format_duration(time).to_string()
}
