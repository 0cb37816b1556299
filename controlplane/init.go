package controlplane

import (
	"fmt"
	"os"
	"path/filepath"

	"bailiwick/controlplane/internal/pki"
	"bailiwick/shared/identity"
)

// Init makes a new installation below dir from its YAML spec: the offline root and a kit for each control
// node. It returns the names of the control nodes and the bundle that clients verify with.
func Init(spec []byte, dir string) (nodes []string, rootsPEM []byte, err error) {
	parsed, err := pki.ParseSpec(spec)
	if err != nil {
		return nil, nil, err
	}
	in, err := pki.Init(parsed, dir)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range in.ControlNodes {
		nodes = append(nodes, c.Name)
	}
	if len(nodes) == 0 {
		return nil, nil, fmt.Errorf("init %s: the spec names no control node", dir)
	}
	rootsPEM, err = os.ReadFile(filepath.Join(dir, nodes[0], "identity", identity.FileRoots))
	return nodes, rootsPEM, err
}
