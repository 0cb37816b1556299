package manifest_test

import (
	"bailiwick/controlplane/internal/manifest"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

func resources(d manifest.Document) []*adminv1.Resource { return []*adminv1.Resource{d.Resource} }
