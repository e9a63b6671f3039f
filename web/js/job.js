// What a job's document means to people.

export const STATUSES = ["pending", "running", "completed", "failed", "cancelled"];
const STAGES = {
  queued: "waiting",
  loading_model: "loading the model",
  preparing: "preparing the method",
  generating: "generating",
  attributing: "attributing",
  saving: "saving",
};

export const hasEnded = (job) => !["pending", "running"].includes(job.status);

/** The methods that a job runs, one or several. */
export const methodsOf = (request) => request.methods ?? [request.method];

/** The first text of a request, on one line. */
export function titleOf(request) {
  const conversation = Array.isArray(request.messages?.[0]) ? request.messages[0] : request.messages;
  const text = conversation ? conversation.at(-1).content : [request.input_text].flat()[0];
  // Without invisible characters but those that join letters: some turn the direction of what follows.
  return (text ?? "").replace(/\s+/g, " ").replace(/(?![\u200c\u200d])[\p{Cc}\p{Cf}]/gu, "");
}

/** What it is doing, in a few words. */
export function stateOf(job) {
  if (job.cancel_requested && !hasEnded(job)) return "stopping";
  if (job.status === "pending") {
    const ahead = job.queue_position ?? 0;
    return ahead ? `waiting, ${ahead} ahead` : "next in the queue";
  }
  if (job.status !== "running") return job.expired_at ? `${job.status}, result removed` : job.status;
  const { stage, steps_done, steps_total, eta_seconds, method } = job.progress;
  const steps = steps_total ? ` ${steps_done}/${steps_total}` : "";
  const left = eta_seconds === null || eta_seconds === undefined ? "" : `, ${duration(eta_seconds)} left`;
  return `${STAGES[stage] ?? stage}${method ? ` by ${method}` : ""}${steps}${left}`;
}

/** The same without numbers, for those who are told of every change. */
export function phaseOf(job) {
  if (hasEnded(job)) return `The job is ${job.status}.`;
  return job.status === "pending" ? "waiting" : (STAGES[job.progress.stage] ?? job.progress.stage);
}

export function duration(seconds) {
  if (seconds < 1) return "under 1 s";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** How long it ran, in seconds, or null. */
export function runTime(job) {
  if (!job.started_at || !job.finished_at) return null;
  return (new Date(job.finished_at) - new Date(job.started_at)) / 1000;
}

export function when(time) {
  const date = new Date(time);
  const today = date.toDateString() === new Date().toDateString();
  return date.toLocaleString([], today ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" });
}
