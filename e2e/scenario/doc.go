// Package scenario holds the end-to-end tests: one file a promise, each through public interfaces only (CLI,
// admin and join API, HTTP through the edges, the sandbox's control_url and directory). Each test also shows
// that it would see the broken case. It owns nothing but the sandboxes its tests start. Three tests run at once, each on a
// sandbox and ports of its own (go test -parallel 3, as make does); they mostly wait.
package scenario
