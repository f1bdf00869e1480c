//! One round of queries: asks for the requests that are due, and settles those with an answer.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow};
use tokio::time::{Instant, timeout};

use super::choose::{Choice, choose};
use super::question::{Question, Window, questions};
use super::{ANSWER, Source, Task};
use crate::model::{AgentSpan, Unbound};

/// Questions of one look; requests that come meanwhile wait for its end.
const QUESTIONS_MAX: usize = 8;
/// Traces asked for to answer one question.
const TRACES_MAX: usize = 16;

/// The spans that answer a question.
struct Answer {
    spans: Vec<AgentSpan>,
    /// There are more than were asked for: whether only one fits is unknown.
    is_cut: bool,
}

impl<S: Source + Sync> Task<S> {
    pub(super) async fn look(&mut self, now: Instant) {
        if now < self.not_before {
            return;
        }
        let is_due = |&index: &usize| self.waiting[index].next <= now;
        let due: Vec<usize> = (0..self.waiting.len()).filter(is_due).collect();
        let mut settled: Vec<(usize, AgentSpan)> = Vec::new();
        for (question, positions) in questions(&self.waiting, &due)
            .into_iter()
            .take(QUESTIONS_MAX)
        {
            match self.ask(&question, &positions).await {
                Ok(answer) => {
                    self.pauses.reset();
                    settled.extend(self.answered(&answer, &positions));
                }
                Err(error) => {
                    tracing::warn!(
                        "the OAP cannot be asked for segments of agents, trying again: {error:#}"
                    );
                    for &index in &positions {
                        let waiting = &mut self.waiting[index];
                        waiting.failures += 1;
                        waiting.so_far = Unbound::QueryFailed;
                    }
                    self.not_before = Instant::now() + self.pauses.pause();
                    break;
                }
            }
        }
        // From behind: positions before stay what they are.
        settled.sort_by_key(|&(index, _)| std::cmp::Reverse(index));
        for (index, span) in settled {
            let waiting = self.waiting.remove(index);
            self.settle_with(waiting, &span).await;
        }
    }

    async fn ask(&self, question: &Question, positions: &[usize]) -> Result<Answer> {
        let window = match question {
            Question::Trace(trace_id) => {
                let spans = answered(self.source.spans(trace_id)).await?;
                let is_cut = false;
                return Ok(Answer { spans, is_cut });
            }
            Question::Window(window) => window,
        };
        let list = answered(self.source.segments(window)).await?;
        let fitting = list.segments.iter().filter(|row| {
            let mut requests = positions.iter().map(|&index| &self.waiting[index]);
            requests.any(|waiting| Window::may_be(waiting, row.start_unix_ms, row.end_unix_ms))
        });
        let traces: BTreeSet<&str> = fitting.map(|row| row.trace_id.as_str()).collect();
        let mut answer = Answer {
            spans: Vec::new(),
            is_cut: list.is_cut || traces.len() > TRACES_MAX,
        };
        for trace_id in traces.into_iter().take(TRACES_MAX) {
            answer
                .spans
                .extend(answered(self.source.spans(trace_id)).await?);
        }
        Ok(answer)
    }

    /// The requests that an answer settles, with their spans. What one is given the next one is not: that
    /// may leave only one for it.
    fn answered(&mut self, answer: &Answer, positions: &[usize]) -> Vec<(usize, AgentSpan)> {
        let mut settled: Vec<(usize, AgentSpan)> = Vec::new();
        let mut open: Vec<usize> = positions.to_vec();
        loop {
            let before = open.len();
            open.retain(|&index| {
                let waiting = &mut self.waiting[index];
                let is_given = |id: &str| settled.iter().any(|(_, span)| span.segment_id == id);
                let is_taken = |id: &str| self.taken.contains(id) || is_given(id);
                let choice = choose(waiting, &answer.spans, is_taken, self.is_endpoint);
                waiting.so_far = match choice {
                    Choice::Found(found) if !answer.is_cut => {
                        settled.push((index, answer.spans[found].clone()));
                        return false;
                    }
                    Choice::Found(_) | Choice::Several => Unbound::Ambiguous,
                    Choice::Nothing => Unbound::NotFound,
                };
                true
            });
            if open.len() == before {
                break;
            }
        }
        for index in open {
            let waiting = &mut self.waiting[index];
            let pause = waiting.pauses.pause();
            waiting.next = (Instant::now() + pause).min(waiting.deadline);
        }
        settled
    }
}

/// The answer, if it comes in time.
async fn answered<T>(question: impl Future<Output = Result<T>>) -> Result<T> {
    match timeout(ANSWER, question).await {
        Ok(answer) => answer,
        Err(_) => Err(anyhow!("no answer within {ANSWER:?}")),
    }
}
