// The 1.x line of the TypeScript SDK: node client_1.mjs stdio COMMAND… | http URL
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { drive } from "./session.mjs";

const require = createRequire(`${process.env.INTEROP_MODULES}/x`);
const load = (path) => import(pathToFileURL(require.resolve(path)));
const { Client } = await load("@modelcontextprotocol/sdk/client/index.js");
const { StdioClientTransport } = await load("@modelcontextprotocol/sdk/client/stdio.js");
const { StreamableHTTPClientTransport } = await load("@modelcontextprotocol/sdk/client/streamableHttp.js");
const { McpError } = await load("@modelcontextprotocol/sdk/types.js");

const [kind, ...target] = process.argv.slice(2);
const client = new Client({ name: "typescript-1", version: "1" });
await client.connect(
  kind === "stdio"
    ? new StdioClientTransport({ command: target[0], args: target.slice(1), stderr: "ignore" })
    : new StreamableHTTPClientTransport(new URL(target[0])),
);
const call = (name, args, options) => client.callTool({ name, arguments: args }, undefined, options);
await drive(process.env.INTEROP_VERSION, client, call, McpError);
