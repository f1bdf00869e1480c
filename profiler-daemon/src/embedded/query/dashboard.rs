//! The menu and the dashboards that SkyWalking's UI shows: services, and what profilerd knows of each.
//!
//! In:  nothing
//! Out: menu items; dashboards as JSON, in the form that the UI saves them in
//! Lost: changes of dashboards: they are refused, with a text
//!
//! A dashboard is a grid of 24 columns and rows of 10 pixels. A widget has its place in `x`, `y`, `w` and `h`, a number
//! among its neighbours in `i`, and a `type`: `Widget` is a chart or a list, `Tab` has pages of widgets, `Profile` and `Trace`
//! are whole pages. A list leads to the dashboard of `dashboardName`. The UI begins with the dashboard of a layer that has
//! `isRoot`.
//! <https://github.com/apache/skywalking-booster-ui/blob/v10.1.0/src/types/dashboard.d.ts>

use async_graphql::{InputObject, Object, SimpleObject};

use super::metadata::LAYER;

/// Id and configuration of each dashboard.
const DASHBOARDS: [(&str, &str); 4] = [
    (
        "profilerd-services",
        include_str!("dashboards/services.json"),
    ),
    ("profilerd-service", include_str!("dashboards/service.json")),
    (
        "profilerd-instance",
        include_str!("dashboards/instance.json"),
    ),
    (
        "profilerd-endpoint",
        include_str!("dashboards/endpoint.json"),
    ),
];

#[derive(Debug, Default)]
pub(super) struct DashboardQuery;

#[derive(Debug, Default)]
pub(super) struct DashboardMutation;

#[derive(Debug, SimpleObject)]
struct MenuItem {
    title: String,
    icon: Option<String>,
    layer: String,
    activate: bool,
    sub_items: Vec<MenuItem>,
    description: Option<String>,
    document_link: Option<String>,
    #[graphql(name = "i18nKey")]
    i18n_key: Option<String>,
}

#[derive(Debug, SimpleObject)]
struct DashboardConfiguration {
    id: String,
    configuration: String,
}

#[derive(Debug, InputObject)]
struct NewDashboardSetting {
    configuration: String,
}

#[derive(Debug, InputObject)]
struct DashboardSetting {
    id: String,
    configuration: String,
}

#[derive(Debug, SimpleObject)]
struct TemplateChangeStatus {
    id: String,
    /// Whether it was changed.
    status: bool,
    message: Option<String>,
}

impl MenuItem {
    /// An item with one of the UI's own icons, if any, and the key of its translations.
    fn new(title: &str, icon: Option<&str>, key: &str, sub_items: Vec<Self>) -> Self {
        Self {
            title: title.to_owned(),
            icon: icon.map(str::to_owned),
            layer: LAYER.to_owned(),
            activate: true,
            sub_items,
            description: None,
            document_link: None,
            i18n_key: Some(key.to_owned()),
        }
    }
}

fn dashboards() -> impl Iterator<Item = DashboardConfiguration> {
    DASHBOARDS
        .iter()
        .map(|(id, configuration)| DashboardConfiguration {
            id: (*id).to_owned(),
            configuration: (*configuration).to_owned(),
        })
}

fn refused(id: String) -> TemplateChangeStatus {
    let text = "the dashboards of profilerd cannot be changed; a SkyWalking OAP keeps your own";
    TemplateChangeStatus {
        id,
        status: false,
        message: Some(text.to_owned()),
    }
}

#[Object]
impl DashboardQuery {
    async fn get_menu_items(&self) -> Vec<MenuItem> {
        let key = "general_service";
        let services = MenuItem::new("Services", None, "general_service_services", Vec::new());
        vec![MenuItem::new(
            "General Service",
            Some(key),
            key,
            vec![services],
        )]
    }

    async fn get_all_templates(&self) -> Vec<DashboardConfiguration> {
        dashboards().collect()
    }

    async fn get_template(&self, id: String) -> Option<DashboardConfiguration> {
        dashboards().find(|dashboard| dashboard.id == id)
    }
}

#[Object]
impl DashboardMutation {
    async fn add_template(
        &self,
        #[graphql(name = "setting")] _setting: NewDashboardSetting,
    ) -> TemplateChangeStatus {
        refused(String::new())
    }

    async fn change_template(&self, setting: DashboardSetting) -> TemplateChangeStatus {
        refused(setting.id)
    }

    async fn disable_template(&self, id: String) -> TemplateChangeStatus {
        refused(id)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// All objects in a dashboard.
    fn objects(value: &Value) -> Vec<&Value> {
        let inner = match value {
            Value::Object(map) => map.values().collect(),
            Value::Array(values) => values.iter().collect(),
            _ => Vec::new(),
        };
        let inner = inner.into_iter().flat_map(objects);
        let own = value.is_object().then_some(value);
        own.into_iter().chain(inner).collect()
    }

    /// Check that each dashboard can be read, that one is the first, and that lists lead to dashboards that are there.
    #[test]
    fn lists_lead_to_dashboards() {
        let read =
            |dashboard: DashboardConfiguration| serde_json::from_str(&dashboard.configuration);
        let all: Vec<Value> = dashboards().map(|it| read(it).unwrap()).collect();
        let names: BTreeSet<(&str, &str)> = all
            .iter()
            .map(|it| (it["entity"].as_str().unwrap(), it["name"].as_str().unwrap()))
            .collect();
        assert_eq!(names.len(), DASHBOARDS.len());
        assert!(all.iter().all(|it| it["layer"] == LAYER));
        let roots = all.iter().filter(|it| it["isRoot"] == true);
        assert_eq!(roots.map(|it| &it["entity"]).collect::<Vec<_>>(), ["All"]);
        let mut lists = 0;
        for object in all.iter().flat_map(objects) {
            let Some(name) = object["dashboardName"].as_str() else {
                continue;
            };
            let entity = object["type"]
                .as_str()
                .unwrap()
                .strip_suffix("List")
                .unwrap();
            let entity = if entity == "Instance" {
                "ServiceInstance"
            } else {
                entity
            };
            assert!(names.contains(&(entity, name)), "{entity} {name}");
            lists += 1;
        }
        assert_eq!(lists, 3);
    }
}
