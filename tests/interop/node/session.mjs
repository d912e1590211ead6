// A session that both lines of the TypeScript SDK can drive: connect, list, call, progress, errors.
// Each client script gives its own connected client; the answers become one JSON object on stdout.

const SESSION = "demo-sasrec-1";
const MAX_WAITS = 40;

const textOf = (result) => result.content.filter((part) => part.type === "text").map((part) => part.text).join("\n");
const isRunning = (text) => /\brunning\b/.test(text.slice(0, 160));

export async function drive(version, client, call, ResultError) {
  const checks = [];
  const check = (name, passed, detail = "") =>
    checks.push({ name, passed: Boolean(passed), detail: (typeof detail === "string" ? detail : JSON.stringify(detail) ?? "").slice(0, 600) });

  check("initialize", client.getServerVersion().name === "virtualmle" && client.getInstructions(), client.getServerVersion());
  const { tools } = await client.listTools();
  check("tools/list", tools.length >= 9 && tools.every((tool) => tool.description && tool.inputSchema.type === "object"), tools);
  const page = await client.readResource({ uri: "sandbox://protocol" });
  check("resources/read", page.contents[0].text.includes("max_trials"), page);
  const prompt = await client.getPrompt({ name: "tune", arguments: { dataset: "demo" } });
  check("prompts/get", prompt.messages[0].content.text.includes("demo"), prompt);

  const opened = await call("open_session", { dataset: "demo", backbone: "sasrec" });
  check("open_session", !opened.isError && textOf(opened).includes(SESSION), textOf(opened));
  const seen = []; // the progress of each call: it rises within one
  const watched = (name, args) => {
    const steps = [];
    seen.push(steps);
    return call(name, args, { onprogress: ({ progress }) => steps.push(progress) });
  };
  let ran = await watched("run_trial", { session: SESSION, changes: {}, wait_seconds: 20 });
  check("run_trial", !ran.isError, textOf(ran));
  for (let waits = 0; isRunning(textOf(ran)) && waits < MAX_WAITS; waits++)
    ran = await watched("wait_trial", { session: SESSION, trial: "t001", wait_seconds: 20 });
  check("wait_trial until it has finished", textOf(ran).includes("keep"), textOf(ran));
  const rises = (steps) => steps.every((value, i) => i === 0 || value > steps[i - 1]);
  check("progress rises", seen.flat().length > 0 && seen.every(rises), seen);
  check("structured content", ran.structuredContent?.status === "finished", ran.structuredContent); // validated by the SDK

  const seed = await call("run_trial", { session: SESSION, changes: {}, seed: 7 });
  check("a seed is refused", seed.isError && /seeds belong to the server/i.test(textOf(seed)), textOf(seed));
  const unknown = await call("no_such_tool", {}).catch((error) => error);
  check("an unknown tool is refused", unknown instanceof ResultError || unknown.isError, String(unknown));
  const missing = await client.readResource({ uri: "session://nobody/trajectory" }).catch((error) => error);
  check("an unknown resource is refused", missing instanceof ResultError, String(missing));
  await client.close();
  console.log(JSON.stringify({ version, checks }));
}
