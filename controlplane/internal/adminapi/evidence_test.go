package adminapi_test

import (
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bailiwick/controlplane/internal/adminapi/apitest"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
)

// Who may look may take evidence away; a stranger may not, and its interval is judged after that.
func TestExportEvidence_ToWhomItMayGo(t *testing.T) {
	z := apitest.New(t, 50*time.Millisecond).Zones["emea"]
	now := time.Now()
	for _, c := range []struct {
		token    string
		from, to time.Time
		want     connect.Code
	}{
		{"", now.Add(-time.Hour), now, connect.CodeUnauthenticated},
		{"nobody", now.Add(-time.Hour), now, connect.CodeUnauthenticated},
		{apitest.Viewer, now.Add(-time.Hour), now, connect.CodeUnimplemented}, // let in: the fixture keeps no evidence
	} {
		client := adminv1connect.NewEvidenceServiceClient(apitest.Client(c.token), z.Server.URL)
		stream, err := client.ExportEvidence(t.Context(), &adminv1.ExportEvidenceRequest{From: timestamppb.New(c.from), To: timestamppb.New(c.to)})
		if err == nil {
			for stream.Receive() {
			}
			err = stream.Err()
			stream.Close()
		}
		if got := connect.CodeOf(err); got != c.want {
			t.Errorf("token %q: %v, want %v", c.token, err, c.want)
		}
	}
}
