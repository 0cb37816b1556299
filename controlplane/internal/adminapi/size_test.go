package adminapi_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/adminapi/apitest"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"
)

// unmeasured hides how long a body is, so that nothing announces it.
type unmeasured struct{ io.Reader }

// A request as large as the limit is served. One that is a byte larger is refused with a reason and changes nothing,
// whether its length is announced, comes to light while it is read, or only when it is unpacked.
func TestHandler_RequestSize(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	served := 0
	body := func(size int) []byte {
		served++
		text := fmt.Sprintf(`{"resources":[{"name":"sized-%d","product":{"apis":["orders"]}}]}`, served)
		return append([]byte(text), bytes.Repeat([]byte(" "), size-len(text))...)
	}
	packed := func(b []byte) []byte {
		var out bytes.Buffer
		w := gzip.NewWriter(&out)
		if _, err := w.Write(b); err != nil || w.Close() != nil {
			t.Fatal("gzip")
		}
		return out.Bytes()
	}
	const limit = adminapi.MaxRequest
	for _, c := range []struct {
		name       string
		size       int
		zip, blind bool
	}{
		{"at the limit", limit, false, false},
		{"at the limit, not announced", limit, false, true},
		{"at the limit, packed", limit, true, false},
		{"a byte above", limit + 1, false, false},
		{"above by more than a frame", limit + 6, false, false},
		{"far above", 3 * limit, false, false},
		{"a byte above, not announced", limit + 1, false, true},
		{"far above, not announced", 3 * limit, false, true},
		{"a byte above, packed", limit + 1, true, false},
		{"far above, packed", 8 * limit, true, false},
	} {
		before := in.Catalog.Dump()
		b := body(c.size)
		if c.zip {
			b = packed(b)
		}
		var from io.Reader = bytes.NewReader(b)
		if c.blind {
			from = unmeasured{from}
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, z.Server.URL+adminv1connect.ResourceServiceApplyProcedure, from)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if c.zip {
			req.Header.Set("Content-Encoding", "gzip")
		}
		resp, err := apitest.Client(apitest.Admin).Do(req)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		answer, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if c.size <= limit {
			if resp.StatusCode != http.StatusOK || in.Catalog.Dump() == before {
				t.Errorf("%s: %s %s", c.name, resp.Status, answer)
			}
			continue
		}
		var said struct{ Code, Message string }
		if err := json.Unmarshal(answer, &said); err != nil || resp.StatusCode != http.StatusTooManyRequests || said.Code != "resource_exhausted" || !strings.Contains(said.Message, fmt.Sprint(limit)) {
			t.Errorf("%s: %s %s, want the limit of %d named", c.name, resp.Status, answer, limit)
		}
		if in.Catalog.Dump() != before {
			t.Errorf("%s: it changed something", c.name)
		}
	}

	// As protobuf, in Connect's own protocol and framed.
	for name, opts := range map[string][]connect.ClientOption{"connect": nil, "grpc-web": {connect.WithGRPCWeb()}} {
		client := adminv1connect.NewResourceServiceClient(apitest.Client(apitest.Admin), z.Server.URL, append(opts, faults)...)
		for _, size := range []int{limit, limit + 1, limit + 100} {
			served++
			before := in.Catalog.Dump()
			req := &adminv1.ApplyRequest{Resources: parse(t, fmt.Sprintf("kind: Product\nname: sized-%d\nspec: {apis: [orders]}\n", served))}
			const field = 5000 // of a client that is newer; its number takes three bytes, and its length four
			fill := protowire.AppendTag(nil, field, protowire.BytesType)
			req.ProtoReflect().SetUnknown(protowire.AppendBytes(fill, make([]byte, size-proto.Size(req)-len(fill)-4)))
			if got := proto.Size(req); got != size {
				t.Fatalf("made %d bytes, want %d", got, size)
			}
			_, err := client.Apply(t.Context(), req)
			changed := in.Catalog.Dump() != before
			if size <= limit && (err != nil || !changed) {
				t.Errorf("%s, %d bytes: %v", name, size, err)
			}
			if size > limit && (fault.KindOf(err) != fault.TooLarge || fault.ReasonOf(err) != "TOO_LARGE" || !strings.Contains(err.Error(), fmt.Sprint(limit)) || changed) {
				t.Errorf("%s, %d bytes: changed %t, %v (%s)", name, size, changed, err, fault.ReasonOf(err))
			}
		}
	}
}
