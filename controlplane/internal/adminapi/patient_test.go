package adminapi_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/adminapi/apitest"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
)

// An export outlasts the timeouts of the server that it is served by, over HTTP/1.1 and HTTP/2.
func TestExport_OutlastsTheTimeoutsOfItsServer(t *testing.T) {
	z := apitest.New(t, 5*time.Second).Zones["emea"]
	apply(t, z, sample(t, "10-catalog.yaml"))
	apply(t, z, "kind: Customer\nname: person\nspec: {zone: emea, subscriptions: [{name: main, plan: gold}]}\n")
	const timeout = 300 * time.Millisecond
	z.Detail.Set(adminapi.Traced{Rows: []*adminv1.TraceRow{{RequestId: "r1"}}})
	z.Detail.SetSlow(3 * timeout)
	for _, http2 := range []bool{false, true} {
		server := httptest.NewUnstartedServer(z.Server.Config.Handler)
		server.EnableHTTP2 = http2
		server.Config.ReadTimeout, server.Config.WriteTimeout = timeout, timeout
		server.StartTLS()
		client := server.Client()
		ask, err := adminv1connect.NewCustomerServiceClient(bearer{client, apitest.Admin}, server.URL, faults).Export(t.Context(), &adminv1.ExportRequest{Customer: "person"})
		if err != nil {
			t.Fatal(err)
		}
		var doc strings.Builder
		for ask.Receive() {
			doc.Write(ask.Msg().GetChunk())
		}
		if err := ask.Err(); err != nil || !strings.HasSuffix(doc.String(), "}\n") || !strings.Contains(doc.String(), "r1") || !strings.Contains(doc.String(), `"missing": []`) {
			t.Errorf("HTTP/2 %v: %v after %s", http2, err, doc.String())
		}
		ask.Close()
		server.Close()
	}
}

type bearer struct {
	*http.Client
	token string
}

func (b bearer) Do(r *http.Request) (*http.Response, error) {
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.Client.Do(r)
}

// A client that takes nothing holds an export no longer than a stall.
func TestExport_EndsWhenItsClientStopsReading(t *testing.T) {
	ended := make(chan error, 1)
	h := adminapi.Patient(50*time.Millisecond, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		for {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				ended <- err
				return
			}
		}
	}), adminv1connect.CustomerServiceExportProcedure)
	server := httptest.NewServer(h)
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST "+adminv1connect.CustomerServiceExportProcedure+" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Error("it still waits for its client")
	}
}
