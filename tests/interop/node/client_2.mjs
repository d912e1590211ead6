// The 2.x line of the TypeScript SDK: node client_2.mjs stdio COMMAND… | http URL
// It negotiates the newest revision that the server offers (2026-07-28) and falls back to the handshake.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { drive } from "./session.mjs";

const require = createRequire(`${process.env.INTEROP_MODULES}/x`);
const load = (path) => import(pathToFileURL(require.resolve(path)));
const { Client, StreamableHTTPClientTransport } = await load("@modelcontextprotocol/client");
const { StdioClientTransport } = await load("@modelcontextprotocol/client/stdio");

const [kind, ...target] = process.argv.slice(2);
const client = new Client({ name: "typescript-2", version: "1" }, { versionNegotiation: { mode: "auto" } });
await client.connect(
  kind === "stdio"
    ? new StdioClientTransport({ command: target[0], args: target.slice(1), stderr: "ignore" })
    : new StreamableHTTPClientTransport(new URL(target[0])),
);
const call = (name, args, options) => client.callTool({ name, arguments: args }, options);
await drive(process.env.INTEROP_VERSION, client, call, Error);
