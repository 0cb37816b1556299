// Package archtest holds the architecture as tests: who may import whom, who owns which technology, what the
// edge may not link. Each rule says why it exists. It reads the tree by `go list` and source parsing and
// changes nothing.
package archtest
