//! The query side of the OAP, with the token of the moment.
//!
//! In:  `oap.query`, the token
//! Out: a client for each question
//! Lost: nothing

use anyhow::Result;
use tokio::sync::watch;

use crate::config::Config;
use crate::oap::TokenNow;
use crate::oap::graphql::GraphqlClient;

/// Largest answer of the OAP: a trace of some thousand spans.
const ANSWER_MAX_BYTES: usize = 16 << 20;

/// An OAP that can be asked.
#[derive(Clone, Debug)]
pub(super) struct OapQuery {
    client: GraphqlClient,
    /// The latest token, if one may be sent.
    token: Option<watch::Receiver<TokenNow>>,
}

impl OapQuery {
    /// The OAP of `oap.query`, if there is one. The token is for an OAP of profilerd; others ask for none here.
    ///
    /// # Errors
    ///
    /// The configuration cannot be used.
    pub(super) fn of(
        config: &Config,
        token: Option<watch::Receiver<TokenNow>>,
    ) -> Result<Option<Self>> {
        let Some(url) = &config.oap.query else {
            return Ok(None);
        };
        let client = GraphqlClient::new(url)?.with_local_users(&config.local_users()?);
        Ok(Some(Self {
            client: client.with_answers_up_to(ANSWER_MAX_BYTES),
            token,
        }))
    }

    /// For a question now.
    ///
    /// # Errors
    ///
    /// There is no token where there should be one.
    pub(super) fn client(&self) -> Result<GraphqlClient> {
        let client = self.client.clone();
        match &self.token {
            Some(token) => client.with_token(token.borrow().get()?),
            None => Ok(client),
        }
    }
}
