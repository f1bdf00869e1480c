//! The token that an OAP may ask for.

use anyhow::{Result, bail};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// What to do about a token that an OAP of `profilerd standalone` refuses.
pub const TOKEN_REMEDY: &str =
    "give its token with --token-file FILE or SW_AGENT_AUTHENTICATION; its log names the file";

/// Adds the `authentication` metadata to each call. OAP compares the whole value; there is no
/// "Bearer" before it.
#[derive(Clone, Debug, Default)]
pub struct Token(Option<MetadataValue<Ascii>>);

impl Token {
    /// From the configured text; `None` or empty sends nothing.
    ///
    /// # Errors
    ///
    /// If the text cannot be sent as metadata. The text itself is not repeated in the error.
    pub fn new(token: Option<&str>) -> Result<Self> {
        let Some(token) = token.filter(|token| !token.is_empty()) else {
            return Ok(Self(None));
        };
        let Ok(mut value) = MetadataValue::try_from(token) else {
            bail!("the authentication token may hold visible ASCII characters only");
        };
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authentication", value.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(token: Option<&str>) -> Option<String> {
        let request = Token::new(token).unwrap().call(Request::new(())).unwrap();
        let value = request.metadata().get("authentication")?;
        Some(value.to_str().unwrap().to_owned())
    }

    /// Check that the token is sent as it is, and that no token sends no metadata.
    #[test]
    fn the_token_is_sent_as_it_is() {
        assert_eq!(sent(Some("tok123")).as_deref(), Some("tok123"));
        assert_eq!(sent(Some("")), None);
        assert_eq!(sent(None), None);
    }

    /// Check that a token that cannot be sent is refused without being repeated.
    #[test]
    fn an_unusable_token_is_refused() {
        let error = Token::new(Some("se\ncret")).unwrap_err().to_string();
        assert!(!error.contains("cret"), "{error}");
        assert!(format!("{:?}", Token::new(Some("hidden")).unwrap()).contains("Sensitive"));
    }
}
