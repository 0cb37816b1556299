package scenario_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"bailiwick/e2e/harness"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/fault/rpcfault"
	"bailiwick/shared/identity"
	"bailiwick/shared/usage"
)

// state is everything an operator can get, of both zones, as text.
func state(t *testing.T, s *harness.Sandbox) string {
	t.Helper()
	var b strings.Builder
	for _, zone := range []string{"emea", "us"} {
		for _, kind := range []string{"zones", "regions", "legal-bases", "policies", "apis", "products", "plans", "customers", "closures"} {
			all, err := s.Resources(zone, kind)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "%s %s %s\n", zone, kind, all)
		}
	}
	return b.String()
}

// unchanged runs a case and fails if it left a trace.
func unchanged(t *testing.T, s *harness.Sandbox, run func()) {
	t.Helper()
	before := state(t, s)
	if len(before) < 2000 || !strings.Contains(before, "acme") {
		t.Fatalf("the state has %d bytes and may lack acme: comparing it proves nothing", len(before))
	}
	run()
	if after := state(t, s); after != before {
		t.Errorf("the state has changed, from %d bytes to %d", len(before), len(after))
	}
}

// badManifests: input → exit code and reason at the CLI, code and reason at the API; nothing is written.
func badManifests(t *testing.T, s *harness.Sandbox) {
	policy := func(spec string) string { return "kind: Policy\nname: bad\nspec: {zone: emea, " + spec + "}\n" }
	basis := func(more string) string {
		return "kind: LegalBasis\nname: weak\nspec: {kind: scc, " + more + "}\n---\n" + policy("within_zone: {basis: weak}")
	}
	huge := "kind: Product\nname: huge\nspec:\n  apis: [orders]\n  summary: \"" + strings.Repeat("x", 10<<20) + "\"\n"
	unchanged(t, s, func() {
		for _, c := range []struct {
			name, text, reason string
			exit               int
			position           bool // file and line are named
		}{
			{"unknown field", "kind: Product\nname: p\nspec:\n  apis: [orders]\n  colour: red\n", "FIELD_UNKNOWN", 1, true},
			{"unknown kind", "kind: Wish\nname: p\nspec: {}\n", "MANIFEST_INVALID", 1, true},
			{"broken YAML", "kind: [Product\n", "MANIFEST_SYNTAX", 1, true},
			{"blank name", "kind: Product\nname: \"\"\nspec: {apis: [orders]}\n", "MANIFEST_INVALID", 1, true},
			{"10 MB", huge, "TOO_LARGE", 1, false},
			{"unknown region in a pair", policy("pairs: [{from: eu-west, to: eu-nowhere, basis: gdpr}]"), "REGION_UNKNOWN", 1, true},
			{"unknown region of an upstream", "kind: API\nname: lost\nspec:\n  zone: emea\n  hosts: [lost.emea.example.test]\n  policy: gdpr-emea\n  upstreams: [{region: eu-nowhere, url: \"http://127.0.0.1:1\"}]\n", "REGION_UNKNOWN", 1, true},
			{"self pair", policy("pairs: [{from: eu-west, to: eu-west, basis: gdpr}]"), "PAIR_SELF", 1, true},
			{"suspended basis", basis("status: suspended"), "BASIS_SUSPENDED", 1, true},
			{"expired basis", basis("expires: 2020-01-01"), "BASIS_EXPIRED", 1, true},
			{"stale etag", "kind: Product\nname: commerce\netag: \"1\"\nspec: {apis: [orders, reports]}\n", "ETAG_MISMATCH", 4, false},
			{"a good document before a bad one", "kind: Product\nname: half\nspec: {apis: [orders]}\n---\nkind: Product\nname: p\nspec: {apis: [nothing]}\n", "API_UNKNOWN", 1, true},
		} {
			file := writeFile(t, "bad.yaml", c.text)
			out, stderr, code := s.CLI("emea", "apply", "-f", file)
			if code != c.exit || !strings.Contains(stderr, c.reason) {
				t.Errorf("%s: exit code %d, %q, %.300q; want %d and %s", c.name, code, out, stderr, c.exit, c.reason)
			}
			if c.position && !regexp.MustCompile(regexp.QuoteMeta(filepath.Base(file))+`:\d+`).MatchString(stderr) {
				t.Errorf("%s: %.300q names no file and line", c.name, stderr)
			}
		}
		stranger := *s
		stranger.AdminToken = writeFile(t, "token", "not-an-operator\n")
		for _, c := range []struct {
			name string
			s    *harness.Sandbox
			args []string
			exit int
		}{
			{"delete of nothing", s, []string{"delete", "product", "nothing"}, 3},
			{"get of nothing", s, []string{"get", "product", "nothing"}, 3},
			{"no such command", s, []string{"frobnicate"}, 2},
			{"no such operator", &stranger, []string{"get", "plans"}, 5},
			{"key of nobody", s, []string{"key", "create", "--customer", "nobody", "--plan", "gold"}, 3},
		} {
			if out, stderr, code := c.s.CLI("emea", c.args...); code != c.exit || stderr == "" {
				t.Errorf("%s: exit code %d, %.200q, %.200q; want %d and a reason", c.name, code, out, stderr, c.exit)
			}
		}
		resources, keys := "bailiwick.admin.v1.ResourceService/Apply", "bailiwick.admin.v1.KeyService/CreateKey"
		for _, c := range []struct {
			name, zone, procedure, body string
			anonymous                   bool
			status                      int
			code, reason                string
		}{
			{"no token", "emea", resources, `{"resources":[{"name":"p","product":{"apis":["orders"]}}]}`, true, 401, "unauthenticated", "TOKEN_MISSING"},
			{"blank name", "emea", resources, `{"resources":[{"name":"","product":{"apis":["orders"]}}]}`, false, 400, "invalid_argument", "FIELD_INVALID"},
			{"10 MB", "emea", resources, `{"resources":[{"name":"p","product":{"apis":["orders"],"summary":"` + strings.Repeat("x", 10<<20) + `"}}]}`, false, 429, "resource_exhausted", "TOO_LARGE"},
			{"unknown region", "emea", resources, `{"resources":[{"name":"p","policy":{"zone":"emea","pairs":[{"from":"eu-west","to":"eu-nowhere","basis":"gdpr"}]}}]}`, false, 400, "invalid_argument", "REGION_UNKNOWN"},
			{"another zone's customer", "us", keys, `{"customer":"acme","zone":"emea"}`, false, 400, "failed_precondition", "WRONG_ZONE"},
			{"unknown customer", "emea", keys, `{"customer":"nobody"}`, false, 404, "not_found", "CUSTOMER_NOT_FOUND"},
		} {
			status, code, reason := rawCall(t, s.AdminHTTP(c.anonymous), s.AdminURLs(c.zone)[0], c.procedure, c.body)
			if status != c.status || code != c.code || reason != c.reason {
				t.Errorf("API, %s: %d %s %s, want %d %s %s", c.name, status, code, reason, c.status, c.code, c.reason)
			}
		}
	})
	// The same way in, with good input: so the refusals above came from the input.
	good := writeFile(t, "good.yaml", "kind: Product\nname: half\nspec: {apis: [orders]}\n")
	before := state(t, s)
	s.MustCLI("emea", "apply", "-f", good)
	if state(t, s) == before {
		t.Error("a good manifest left no trace either")
	}
	s.MustCLI("emea", "delete", "product", "half")
}

// rawCall posts JSON to a procedure, as curl would, and returns the status, code and reason.
func rawCall(t *testing.T, client *http.Client, url, procedure, body string) (status int, code, reason string) {
	t.Helper()
	response, err := client.Post(url+"/"+procedure, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatalf("%s: %v", procedure, err)
	}
	defer response.Body.Close()
	var answer struct {
		Code    string
		Details []struct{ Type, Value string }
	}
	_ = json.NewDecoder(response.Body).Decode(&answer)
	for _, d := range answer.Details {
		info := &errdetails.ErrorInfo{}
		if raw, err := base64.RawStdEncoding.DecodeString(d.Value); d.Type == "google.rpc.ErrorInfo" && err == nil && proto.Unmarshal(raw, info) == nil && info.GetDomain() == rpcfault.Domain {
			reason = info.GetReason()
		}
	}
	return response.StatusCode, answer.Code, reason
}

// badTokens: a join token is good once, for a while, for one place.
func badTokens(t *testing.T, s *harness.Sandbox) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	try := func(zone, tok, name, region string) error {
		_, csr, err := identity.NewKeyAndCSR()
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.JoinService(s.AdminURLs(zone)[0]).Join(ctx, &joinv1.JoinRequest{Token: tok, Csr: csr, Name: name, Region: region})
		return err
	}
	names := func() (out []string) {
		nodes, err := s.Nodes("emea")
		if err != nil {
			t.Fatal(err)
		}
		for name := range nodes {
			out = append(out, name)
		}
		slices.Sort(out)
		return out
	}
	short, err := s.NodeService(s.AdminURLs("emea")[0]).CreateJoinToken(ctx, &adminv1.CreateJoinTokenRequest{Kind: "edge", Region: "eu-west", Name: "tok-late", Ttl: durationpb.New(time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	used := token(t, s, "emea", "eu-west", "tok-used")
	if err := try("emea", used, "tok-used", "eu-west"); err != nil {
		t.Fatalf("a good token: %v", err)
	}
	defer s.CLI("emea", "node", "remove", "tok-used")
	other := token(t, s, "emea", "eu-west", "tok-other")
	before := names()
	if !slices.Contains(before, "tok-used") {
		t.Errorf("nodes are %v, want tok-used among them", before)
	}
	time.Sleep(time.Until(short.GetExpiresAt().AsTime()) + 50*time.Millisecond)
	for _, c := range []struct{ name, zone, token, node, region, reason string }{
		{"used twice", "emea", used, "tok-used", "eu-west", "TOKEN_USED"},
		{"expired", "emea", short.GetToken(), "tok-late", "eu-west", "TOKEN_EXPIRED"},
		{"another region", "emea", other, "tok-other", "eu-central", "TOKEN_REGION_MISMATCH"},
		{"another name", "emea", other, "tok-thief", "eu-west", "TOKEN_NAME_MISMATCH"},
		{"another zone", "us", other, "tok-other", "eu-west", "TOKEN_UNKNOWN"},
		{"no token at all", "emea", "open sesame", "tok-other", "eu-west", "TOKEN_UNKNOWN"},
	} {
		if err := try(c.zone, c.token, c.node, c.region); err == nil || fault.KindOf(err) != fault.Denied || fault.ReasonOf(err) != c.reason {
			t.Errorf("token %s: %v (%s), want %s", c.name, err, fault.ReasonOf(err), c.reason)
		}
	}
	if after := names(); !slices.Equal(after, before) {
		t.Errorf("nodes are %v after refused joins, want %v", after, before)
	}
	if err := try("emea", other, "tok-other", "eu-west"); err != nil {
		t.Errorf("the token that was refused elsewhere, where it belongs: %v", err)
	}
	s.CLI("emea", "node", "remove", "tok-other")
}

// badRequests: what no client should send gets an answer or a closed connection, and the edge lives.
func badRequests(t *testing.T, s *harness.Sandbox) {
	key := s.Key("emea", "gold")
	served := func() int64 { return s.Count("eu-west") + s.Count("eu-central") }
	before := served()
	tlsTo := func(name string, alpn ...string) (*tls.Conn, error) {
		d := &net.Dialer{Timeout: 2 * time.Second}
		return tls.DialWithDialer(d, "tcp", s.HTTPS("eu-west"), &tls.Config{RootCAs: s.Roots(), ServerName: name, NextProtos: alpn})
	}
	for _, c := range []struct {
		name, head string
		status     int
	}{
		{"1 MB header", "GET /v1/orders HTTP/1.1\r\nHost: " + ordersEMEA + "\r\nX-API-Key: " + key + "\r\nX-Long: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", 431},
		{"host of another name than the connection's", "GET / HTTP/1.1\r\nHost: nobody.example.test\r\nX-API-Key: " + key + "\r\n\r\n", 421},
		{"malformed request line", "GET\r\n\r\n", 400},
	} {
		conn, err := tlsTo(ordersEMEA, "http/1.1")
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		go io.WriteString(conn, c.head) // the answer may come before all is read
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%s: %v, want status %d", c.name, err, c.status)
		} else if response.StatusCode != c.status {
			t.Errorf("%s: status %d, want %d", c.name, response.StatusCode, c.status)
		}
		conn.Close()
	}
	if conn, err := tlsTo("nobody.example.test"); err == nil {
		conn.Close()
		t.Error("TLS for an unknown host: a handshake, want unrecognized_name")
	} else if !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("TLS for an unknown host: %v, want unrecognized name", err)
	}
	if err := refused(s.Send(s.ClientFor(harness.Clear, "eu-west"), http.MethodGet, "nobody.example.test", "/", key, nil), 421, "host-unknown"); err != nil {
		t.Errorf("unknown host in clear: %v", err)
	}
	// A POST, which no edge tries twice. The pair may answer it, where the upstream at home is late.
	if err := ok(s.Do("eu-west", http.MethodPost, ordersEMEA, "/v1/orders", key, nil), "eu-west", "eu-central"); err != nil {
		t.Errorf("a good request after all this: %v", err)
	}
	if got := served() - before; got != 1 {
		t.Errorf("the upstreams answered %d requests, want 1", got)
	}
}

// badBlocks: usage is counted from a true chain, of an edge that may bring it, for customers of its zone.
func badBlocks(t *testing.T, s *harness.Sandbox) {
	const customer = "blocks-inc"
	s.MustCLI("emea", "apply", "-f", writeFile(t, "customer.yaml", "kind: Customer\nname: "+customer+"\nspec: {zone: emea, subscriptions: [{plan: unlimited}]}\n"))
	e := joinEdge(t, s, "emea", "eu-west", "block-edge")
	payload := func(customer string) []byte {
		return usage.EncodePayload(map[usage.Cell]usage.Sums{{Start: usage.CellStart(time.Now().UnixMilli()), Customer: customer, Subscription: "unlimited", Plan: "unlimited", PlanRev: 1,
			Product: "commerce", API: "orders", Route: "all", Outcome: usage.OutcomeSuccess, ServedRegion: "eu-west"}: {Requests: 7, Units: 7}})
	}
	good := usage.NewBlock(e.name, 1, 1, [32]byte{}, payload(customer))
	forged := good
	forged.Hash[0] ^= 1
	gap := usage.NewBlock(e.name, 1, 3, good.Hash, payload(customer))
	foreign := usage.NewBlock(e.name, 1, 1, [32]byte{}, payload("umbrella"))
	garbage := usage.NewBlock(e.name, 1, 1, [32]byte{}, []byte("not a payload"))
	unchained := usage.NewBlock(e.name, 1, 2, [32]byte{1}, payload(customer))

	counted := func() int64 {
		u, err := s.Usage("emea", customer)
		if err != nil {
			t.Fatal(err)
		}
		return u.Answered()
	}
	for _, c := range []struct {
		name   string
		block  usage.Block
		reason string
		units  int64 // counted after it
	}{
		{"hash that is not the block's", forged, "WRONG_CHAIN", 0},
		{"foreign customer", foreign, "FOREIGN_CUSTOMER", 0},
		{"payload that is none", garbage, "MALFORMED", 0},
		{"block out of order", gap, "GAP", 0},
		{"good block", good, "", 7},
		{"the same again", good, "", 7},
		{"prev that is not the head", unchained, "FORK", 7}, // a whole block that follows another: two spools speak for one epoch
		{"the right successor, in quarantine", usage.NewBlock(e.name, 1, 2, good.Hash, payload(customer)), "QUARANTINED", 7},
	} {
		applied, reason, err := e.upload(1, c.block)
		if err != nil || reason != c.reason || c.reason == "" && applied != 1 {
			t.Errorf("%s: applied %d, %q, %v; want %q", c.name, applied, reason, err, c.reason)
		}
		if got := counted(); got != c.units {
			t.Errorf("%s: %d requests are counted, want %d", c.name, got, c.units)
		}
	}
	s.MustCLI("emea", "node", "remove", e.name)
	next := usage.NewBlock(e.name, 1, 2, good.Hash, payload(customer))
	s.Eventually(2*time.Second, "a removed edge is turned away", func() error {
		applied, reason, err := e.upload(1, next)
		if err == nil && reason != "WITHDRAWN" {
			return fmt.Errorf("applied %d, %q", applied, reason)
		}
		return nil
	})
	if got := counted(); got != 7 {
		t.Errorf("after the block of a removed edge %d requests are counted, want 7", got)
	}
	if out := s.MustCLI("emea", "usage", "epochs", "--edge", e.name); !strings.Contains(out, "quarantined") {
		t.Errorf("usage epochs does not show the quarantine:\n%s", out)
	}
	s.MustCLI("emea", "usage", "close-epoch", e.name, "1", "--reason", "the edge was a stranger")
}

// upload brings one block in a session of its own over the peer port, and returns its watermark or refusal.
func (e *stranger) upload(epoch uint64, b usage.Block) (applied uint64, reason string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	stream, err := e.ingest().Upload(ctx)
	if err != nil {
		return 0, "", err
	}
	defer stream.CloseResponse()
	defer stream.CloseRequest()
	hello := &usagev1.UploadRequest{Message: &usagev1.UploadRequest_Hello{Hello: &usagev1.Hello{Epoch: epoch}}}
	block := &usagev1.UploadRequest{Message: &usagev1.UploadRequest_Block{Block: &usagev1.Block{Epoch: b.Epoch, Seq: b.Seq, Prev: b.Prev[:], Payload: b.Payload, Hash: b.Hash[:]}}}
	if err := stream.Send(hello); err != nil {
		return 0, "", err
	}
	first, err := stream.Receive()
	if err != nil {
		return 0, "", err
	}
	if first.GetWatermark() == nil {
		return 0, first.GetRefusal().GetReason(), nil
	}
	if err := stream.Send(block); err != nil {
		return 0, "", err
	}
	answer, err := stream.Receive()
	if err != nil {
		return 0, "", err
	}
	return answer.GetWatermark().GetAppliedSeq(), answer.GetRefusal().GetReason(), nil
}

// badPeers: a Raft port of emea takes control nodes of emea and nobody else, before the first byte.
func badPeers(t *testing.T, s *harness.Sandbox) {
	e := joinEdge(t, s, "emea", "eu-west", "raft-edge")
	address := e.peers["emea-1"]
	load := func(node string) *identity.Source {
		source, err := identity.Load(filepath.Join(s.Dir, node, "identity"))
		if err != nil {
			t.Fatalf("identity of %s: %v", node, err)
		}
		return source
	}
	for _, c := range []struct {
		name   string
		source *identity.Source
		group  string
		in     bool
	}{
		{"emea control node", load("emea-2"), "ledger/emea", true},
		{"emea control node", load("emea-2"), "store/emea", len(s.Stores) == 0}, // in etcd it is no group of raft
		{"us control node", load("us-1"), "store/emea", false},
		{"us control node", load("us-1"), "ledger/emea", false},
		{"emea edge", e.source, "store/emea", false},
		{"emea control node, no such group", load("emea-2"), "store/us", false},
	} {
		patience := time.Second
		if !c.in { // who refuses may be late
			patience = 20 * time.Second
		}
		err := stays(address, c.source.ClientTLS([]string{"bailiwick-raft/" + c.group}, nil), patience)
		if c.in && err != nil {
			t.Errorf("%s on %s: %v, want to be let in", c.name, c.group, err)
		}
		if !c.in && err == nil {
			t.Errorf("%s on %s: let in", c.name, c.group)
		}
	}
}

// stays dials and is nil if the other end leaves the connection open for so long. A client learns only by reading that
// its certificate was refused.
func stays(address string, config *tls.Config, patience time.Duration) error {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", address, config)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	_, err = conn.Read(make([]byte, 1))
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return nil
	}
	return err
}
