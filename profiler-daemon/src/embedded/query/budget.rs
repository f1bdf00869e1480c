//! What one query may use while it is answered: so many fields, so much time.
//!
//! In:  each field that is about to be resolved
//! Out: an error in its place once the query has used up what it may
//! Lost: nothing
//!
//! A query of a few lines may ask for the same long list many times. Its answer is built in memory, so the fields in
//! it are counted. The time ends here too what nobody waits for any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_graphql::extensions::{
    Extension, ExtensionContext, ExtensionFactory, NextResolve, ResolveInfo,
};
use async_graphql::{ServerError, ServerResult, Value};

/// Most fields of an answer: 100 MiB of memory. The call tree of a request with 10,000 functions has 60,000.
const FIELDS_MAX: u32 = 500_000;

/// Makes a [`Budget`] for each query.
pub(super) struct Budgets {
    /// How long a query may take.
    pub(super) time: Duration,
}

impl ExtensionFactory for Budgets {
    fn create(&self) -> Arc<dyn Extension> {
        Arc::new(Budget {
            fields: AtomicU32::new(0),
            end: Instant::now() + self.time,
            time: self.time,
        })
    }
}

/// What one query has used.
struct Budget {
    fields: AtomicU32,
    end: Instant,
    time: Duration,
}

impl Budget {
    fn charge(&self) -> ServerResult<()> {
        // As many as are counted fit: a query has ended long before.
        if self.fields.fetch_add(1, Ordering::Relaxed) >= FIELDS_MAX {
            let text = format!("the answer has more than {FIELDS_MAX} fields; ask for less");
            return Err(ServerError::new(text, None));
        }
        if Instant::now() >= self.end {
            return Err(ServerError::new(too_slow(self.time), None));
        }
        Ok(())
    }
}

/// The refusal of a query whose time is over.
pub(super) fn too_slow(time: Duration) -> String {
    format!("the query took longer than {time:?}")
}

#[async_graphql::async_trait::async_trait]
impl Extension for Budget {
    async fn resolve(
        &self,
        context: &ExtensionContext<'_>,
        info: ResolveInfo<'_>,
        next: NextResolve<'_>,
    ) -> ServerResult<Option<Value>> {
        self.charge()?;
        next.run(context, info).await
    }
}

#[cfg(test)]
mod tests {
    use async_graphql::{EmptyMutation, EmptySubscription, Object, Schema};

    use super::*;

    struct Query;

    #[Object]
    impl Query {
        async fn numbers(&self, count: u32) -> Vec<Number> {
            (0..count).map(Number).collect()
        }
    }

    struct Number(u32);

    #[Object]
    impl Number {
        async fn it(&self) -> u32 {
            self.0
        }
    }

    async fn errors(time: Duration, count: u32) -> Vec<String> {
        let schema = Schema::build(Query, EmptyMutation, EmptySubscription);
        let schema = schema.extension(Budgets { time }).finish();
        let answer = schema.execute(format!("{{ numbers(count: {count}) {{ it }} }}"));
        let errors = answer.await.errors.into_iter();
        errors.map(|error| error.message).collect()
    }

    /// Check that an answer has fields up to the bound, and that a query ends when its time is over.
    #[tokio::test]
    async fn a_query_ends_with_its_budget() {
        let long = Duration::from_hours(1);
        assert_eq!(errors(long, 1_000).await, [""; 0]);
        let many = errors(long, FIELDS_MAX).await;
        assert!(many[0].contains("more than 500000 fields"), "{}", many[0]);
        let late = errors(Duration::ZERO, 1).await;
        assert_eq!(late, ["the query took longer than 0ns"]);
    }
}
