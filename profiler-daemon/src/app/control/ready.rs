//! Says why the daemon cannot do its work at this moment: for `/readyz`, `profilerd status` and systemd.
//!
//! In:  the connection to the OAP, the pods of Kubernetes
//! Out: a sentence for each obstacle; none if it is ready
//!
//! All of them go away by waiting. What does not is found before the start, see [`super::super::fitness`].

use super::Control;
use crate::oap::Contact;
use crate::output::clean;

/// Longest sentence; a part of it may be the answer of another program.
const TEXT_MAX_CHARS: usize = 500;

impl Control {
    /// Why the daemon is not ready.
    pub(super) fn obstacles(&self) -> Vec<String> {
        let has_services = self.processes.instances().next().is_some();
        let oap = oap_obstacle(self.oap.contact(), has_services);
        let pods = self.pods.as_ref().and_then(|pods| pods.problem());
        let obstacles = oap
            .into_iter()
            .chain(pods.map(|problem| problem.to_string()));
        obstacles.map(|text| shown(&text)).collect()
    }
}

fn oap_obstacle(contact: Contact, has_services: bool) -> Option<String> {
    match contact {
        Contact::Answered => None,
        // There is nothing to ask it before a service is there.
        Contact::Open if !has_services => None,
        Contact::Open => Some("the OAP has not answered yet".to_owned()),
        Contact::Waiting => Some("no OAP has been reached yet".to_owned()),
        Contact::Lost(reason) => Some(reason),
    }
}

fn shown(text: &str) -> String {
    clean(text).chars().take(TEXT_MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check when an OAP counts as reached: once it has answered, or while there is nothing to ask it.
    #[test]
    fn an_oap_that_is_not_reached_is_an_obstacle() {
        assert_eq!(oap_obstacle(Contact::Answered, true), None);
        assert_eq!(oap_obstacle(Contact::Open, false), None);
        assert!(oap_obstacle(Contact::Open, true).is_some());
        for has_services in [true, false] {
            assert!(oap_obstacle(Contact::Waiting, has_services).is_some());
            let lost = Contact::Lost("refused".to_owned());
            assert_eq!(oap_obstacle(lost, has_services).as_deref(), Some("refused"));
        }
        let long = format!("a\n{}", "x".repeat(600));
        assert_eq!(shown(&long).chars().count(), TEXT_MAX_CHARS);
        assert_eq!(shown(&long).lines().count(), 1);
    }
}
