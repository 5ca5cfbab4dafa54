//! What the verbs that compute begin with.

use sora::{
    app::locate::locate,
    event::Reporter,
    models::source::{ModelSource, Parts},
};

use super::{compute::ComputeArgs, hub::HubArgs, interrupt, progress, reporting::ReportArgs};

/// Readies threads and Ctrl-C, and finds the model that is named; `own` are parts that the user has.
pub fn start(
    compute: &ComputeArgs,
    report: &ReportArgs,
    hub: &HubArgs,
    own: &Parts,
    model: Option<&str>,
) -> anyhow::Result<(Box<dyn Reporter>, Option<ModelSource>)> {
    compute.start_threads()?;
    interrupt::watch()?;
    let reporter = progress::reporter(report);
    let hub = hub.open();
    let model = model.map(|name| locate(name, own, &hub, reporter.as_ref())).transpose()?;
    Ok((reporter, model))
}
