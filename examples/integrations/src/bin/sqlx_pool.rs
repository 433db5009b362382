//! A pool of connections to a database: `cargo run -p fusebox-examples --bin sqlx_pool`.

use std::time::Duration;

use fusebox::{CallError, CircuitBreaker, Outcome};
use sqlx::sqlite::{SqlitePool, SqlitePoolOptions};

/// What the database, or the way to it, is to blame for. A query that is wrong says nothing of it.
fn judge<T>(result: &sqlx::Result<T>) -> Outcome {
    use sqlx::Error::{Io, PoolClosed, PoolTimedOut, Protocol, Tls, WorkerCrashed};
    match result {
        Ok(_) => Outcome::Success,
        Err(error @ (PoolTimedOut | PoolClosed)) => Outcome::failure("pool", error),
        Err(error @ (Io(_) | Protocol(_) | Tls(_) | WorkerCrashed)) => Outcome::failure("connection", error),
        Err(_) => Outcome::Neutral,
    }
}

async fn name(pool: &SqlitePool, breaker: &CircuitBreaker, id: i64) -> Result<Option<String>, CallError<sqlx::Error>> {
    let query = async { sqlx::query_scalar("SELECT name FROM users WHERE id = ?").bind(id).fetch_optional(pool).await };
    breaker.call_with(query, judge).await
}

async fn database() -> sqlx::Result<SqlitePool> {
    // Otherwise a call waits for a connection for 30 s, and only then counts as failed.
    let pool = SqlitePoolOptions::new().max_connections(1).acquire_timeout(Duration::from_millis(100));
    let pool = pool.connect("sqlite::memory:").await?;
    sqlx::query("CREATE TABLE users (id INTEGER, name TEXT)").execute(&pool).await?;
    sqlx::query("INSERT INTO users VALUES (1, 'Ada')").execute(&pool).await?;
    Ok(pool)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (pool, breaker) = (database().await?, CircuitBreaker::builder("users").build()?);
    println!("{:?}", name(&pool, &breaker, 1).await?);
    // Somebody does not give the only connection back.
    let _taken = pool.acquire().await?;
    for _ in 0..4 {
        println!("{}", name(&pool, &breaker, 1).await.unwrap_err());
    }
    Ok(())
}

#[tokio::test]
async fn a_pool_that_is_used_up_opens_the_circuit_and_a_missing_row_or_table_does_not() {
    let (pool, breaker) = (database().await.unwrap(), CircuitBreaker::builder("users").build().unwrap());
    assert_eq!(name(&pool, &breaker, 2).await.unwrap(), None);
    sqlx::query("DROP TABLE users").execute(&pool).await.unwrap();
    for _ in 0..4 {
        assert!(matches!(name(&pool, &breaker, 1).await, Err(CallError::Inner(sqlx::Error::Database(_)))));
    }
    let _taken = pool.acquire().await.unwrap();
    for _ in 0..3 {
        assert!(matches!(name(&pool, &breaker, 1).await, Err(CallError::Inner(sqlx::Error::PoolTimedOut))));
    }
    assert!(matches!(name(&pool, &breaker, 1).await, Err(CallError::Rejected(_))));
}
