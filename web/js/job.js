// Reads a job document of the API, and describes a job in words.

import { oneLine } from "./shown_tokens.js";

export const STATUSES = ["pending", "running", "completed", "failed", "cancelled"];
const STAGES = {
  queued: "waiting",
  loading_model: "loading the model",
  measuring: "measuring the model’s speed",
  checking: "checking the single pass",
  preparing: "preparing the method",
  generating: "generating",
  attributing: "attributing",
  saving: "saving",
};

export const hasEnded = (job) => !["pending", "running"].includes(job.status);

/** The methods that a job runs, one or several. */
export const methodsOf = (request) => (request ? (request.methods ?? [request.method]) : []);

/** The name of a job; else its first text, or the last message of its first conversation, on one line. */
export function titleOf(request) {
  if (!request) return "(unreadable)"; // `error` of the job says why
  if (request.name) return oneLine(request.name);
  const conversation = Array.isArray(request.messages?.[0]) ? request.messages[0] : request.messages;
  const text = conversation ? textOf(conversation.at(-1).content) : [request.input_text].flat()[0];
  return oneLine(text ?? "");
}

/** The content of a message, one text or parts, as one text. */
const textOf = (content) => [content ?? ""].flat().map((part) => part.text ?? part).join("");

/** The state of a job in a few words, with its steps and ETA. */
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

/** The state of a job without numbers. Screen readers announce it, so it must not change with every step. */
export function phaseOf(job) {
  if (hasEnded(job)) return `The job is ${job.status}.`;
  return job.status === "pending" ? "waiting" : (STAGES[job.progress.stage] ?? job.progress.stage);
}

/** A duration in words. */
export function duration(seconds) {
  if (seconds < 1) return "under 1 s";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** The run time in seconds, or null before the job has ended. */
export function runTime(job) {
  if (!job.started_at || !job.finished_at) return null;
  return (new Date(job.finished_at) - new Date(job.started_at)) / 1000;
}

/** A time of day, with the date unless it is today. */
export function when(time) {
  const date = new Date(time);
  const today = date.toDateString() === new Date().toDateString();
  return date.toLocaleString([], today ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" });
}
