package adminapi_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"bailiwick/controlplane/internal/adminapi/apitest"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

// A viewer may call what changes nothing and hands out no whole person; nobody may call anything without a token; an
// admin may call everything that there is.
func TestRights_ViewersChangeNothing(t *testing.T) {
	z := apitest.New(t, 50*time.Millisecond).Zones["emea"]
	status := func(procedure, token, contentType, body string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, z.Server.URL+procedure, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", contentType)
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	services := adminv1.File_bailiwick_admin_v1_services_proto.Services()
	count := 0
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			m := services.Get(i).Methods().Get(j)
			procedure := "/" + string(services.Get(i).FullName()) + "/" + string(m.Name())
			if m.IsStreamingServer() { // its denial is told inside of it, and tested with it
				continue
			}
			count++
			if got := status(procedure, "", "application/json", "{}"); got != http.StatusUnauthorized {
				t.Errorf("%s without a token: got %d", procedure, got)
			}
			if got := status(procedure, apitest.Admin, "application/json", "{}"); got == http.StatusForbidden || got == http.StatusUnauthorized {
				t.Errorf("%s by an admin: got %d: nobody has decided who may call it", procedure, got)
			}
			denied := status(procedure, apitest.Viewer, "application/json", "{}") == http.StatusForbidden
			if writes := !readOnly(m); denied != writes {
				t.Errorf("%s by a viewer: denied %v, want %v", procedure, denied, writes)
			}
		}
	}
	if count < 30 {
		t.Errorf("only %d procedures were looked at", count)
	}
}

func readOnly(m protoreflect.MethodDescriptor) bool {
	o, ok := m.Options().(*descriptorpb.MethodOptions)
	return ok && o.GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS
}
