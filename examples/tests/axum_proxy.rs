//! What `axum_proxy` does when its upstreams fail.

use std::net::SocketAddr;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use tower::ServiceExt;

async fn upstream(status: u16) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let status = StatusCode::from_u16(status).unwrap();
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(async move || status)).await });
    address
}

#[tokio::test]
async fn the_second_upstream_answers_for_the_first_and_nobody_for_both() {
    let (failing, working) = (upstream(500).await.to_string(), upstream(200).await.to_string());
    let ask =
        async |app: &axum::Router| app.clone().oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
    let app = super::app(&[failing.clone(), working]);
    assert_eq!(ask(&app).await.status(), 200);

    let app = super::app(&[failing]);
    for _ in 0..3 {
        assert_eq!(ask(&app).await.status(), 503);
    }
    assert_eq!(ask(&app).await.headers()["retry-after"], "30");
}
