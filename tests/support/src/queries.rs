//! The questions that SkyWalking's UI and `swctl` ask an OAP, as files.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{HttpClient, workspace_root};

/// What the line with the variables begins with.
const VARIABLES: &str = "# variables: ";

/// A question. Its comments say who asks it, and have its variables.
#[derive(Clone, Debug)]
pub struct KnownQuery {
    /// The name of its file.
    pub name: String,
    /// All of the file, GraphQL with comments.
    pub text: String,
}

/// The questions of `profiler-daemon/tests/fixtures/queries`, by name.
///
/// # Errors
/// The folder has something else.
pub fn known_queries() -> Result<Vec<KnownQuery>> {
    let folder = workspace_root().join("profiler-daemon/tests/fixtures/queries");
    let shown = || format!("failed to read {}", folder.display());
    let mut queries = Vec::new();
    for entry in fs::read_dir(&folder).with_context(shown)? {
        let path = entry.with_context(shown)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.and_then(|name| name.strip_suffix(".graphql")) else {
            bail!("{} is no query", path.display());
        };
        queries.push(KnownQuery {
            name: name.to_owned(),
            text: fs::read_to_string(&path).with_context(shown)?,
        });
    }
    queries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(queries)
}

impl KnownQuery {
    /// Its variables, with values for texts such as `@SERVICE`.
    ///
    /// # Errors
    /// They are not JSON, or a text has no value.
    pub fn variables(&self, values: &BTreeMap<&str, Value>) -> Result<Value> {
        let lines = self.text.lines();
        let Some(line) = lines.filter_map(|line| line.strip_prefix(VARIABLES)).next() else {
            return Ok(Value::Null);
        };
        let of = || format!("the variables of {}", self.name);
        let mut variables = serde_json::from_str(line).with_context(of)?;
        fill(&mut variables, values).with_context(of)?;
        Ok(variables)
    }
}

/// Asks a GraphQL server a question; its answer, which may be of errors.
///
/// # Errors
/// It does not answer in time, or not in JSON.
pub fn ask(
    address: SocketAddr,
    query: &str,
    variables: &Value,
    deadline: Duration,
) -> Result<Value> {
    let body = json!({ "query": query, "variables": variables }).to_string();
    let json = [("Content-Type", "application/json")];
    let mut client = HttpClient::connect(address, deadline)?;
    let response = client.request_with("POST", "/graphql", &json, &body)?;
    serde_json::from_slice(&response.body).context("the answer is not JSON")
}

fn fill(variables: &mut Value, values: &BTreeMap<&str, Value>) -> Result<()> {
    match variables {
        Value::String(text) => {
            if let Some(name) = text.strip_prefix('@') {
                let value = values.get(name);
                *variables = value
                    .with_context(|| format!("no value for @{name}"))?
                    .clone();
            }
        }
        Value::Array(inner) => return inner.iter_mut().try_for_each(|it| fill(it, values)),
        Value::Object(inner) => return inner.values_mut().try_for_each(|it| fill(it, values)),
        _ => {}
    }
    Ok(())
}
