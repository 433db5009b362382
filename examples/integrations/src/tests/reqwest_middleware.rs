//! The middleware, with hosts that refuse.

use super::client;

#[tokio::test]
async fn a_host_that_refuses_is_left_alone_after_three_failures_and_another_one_is_not() {
    let client = client().unwrap();
    let ask = async |url| client.get(url).send().await.unwrap_err();
    for _ in 0..3 {
        assert!(ask("http://127.0.0.1:1/").await.is_connect());
    }
    let rejected = ask("http://127.0.0.1:1/").await;
    assert!(rejected.to_string().contains("127.0.0.1:1: the circuit is open"), "{rejected}");
    assert!(ask("http://127.0.0.1:2/").await.is_connect());
}
