package certstore_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/controlplane/internal/certstore"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/raftgroup"
	"bailiwick/controlplane/internal/peer"
	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
	"bailiwick/proto/gen/bailiwick/join/v1/joinv1connect"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

var _ joinv1connect.CertStoreServiceHandler = (*certstore.Service)(nil)

func name(zone, kind string) identity.Name {
	return identity.Name{Zone: zone, Installation: "test.example", Region: "r", Kind: kind, Node: "n"}
}

// hosts are all that do not say otherwise.
type hosts struct{}

func (hosts) Published(_ context.Context, host string) (bool, error) {
	return !strings.HasPrefix(host, "unknown"), nil
}

func start(t *testing.T) (*certstore.Service, context.Context) {
	t.Helper()
	return startOn(t, func(s group.Store) group.Store { return s })
}

// startOn is start on a store that does something more.
func startOn(t *testing.T, wrap func(group.Store) group.Store) (*certstore.Service, context.Context) {
	t.Helper()
	s, err := raftgroup.NewStore(raftgroup.Config{Group: "store/emea", Node: "emea-1", Dir: t.TempDir(), Voters: []string{"emea-1"}, Timing: raftgroup.Local()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	svc, err := certstore.New(wrap(s), "emea.test.example", hosts{})
	if err != nil {
		t.Fatal(err)
	}
	return svc, peer.WithName(t.Context(), name("emea", identity.Edge))
}

// take takes a lock and returns the lease.
func take(t *testing.T, s *certstore.Service, ctx context.Context, lock, holder string, ttl time.Duration) *joinv1.Lease {
	t.Helper()
	r, err := s.Lock(ctx, &joinv1.LockRequest{Name: lock, Holder: holder, TtlMs: ttl.Milliseconds()})
	if err != nil || !r.Held {
		t.Fatalf("lock %s for %s: got %v, %v, want held", lock, holder, r, err)
	}
	return &joinv1.Lease{Name: lock, Holder: holder, Fence: r.Fence}
}

func TestService_KeepsValues(t *testing.T) {
	s, ctx := start(t)
	leases := map[string]*joinv1.Lease{}
	for _, l := range []string{"issue_cert_a.test", "issue_cert_a.test.org", "register_acme_account"} {
		leases[l] = take(t, s, ctx, l, "me", time.Minute)
	}
	for k, lock := range map[string]string{"certificates/ca/a.test/a.test.crt": "issue_cert_a.test", "certificates/ca/a.test/a.test.key": "issue_cert_a.test",
		"certificates/ca/a.test.org/x": "issue_cert_a.test.org", "acme/ca/users/x": "register_acme_account"} {
		if _, err := s.Store(ctx, &joinv1.StoreRequest{Key: k, Value: []byte("v " + k), Lease: leases[lock]}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Load(ctx, &joinv1.LoadRequest{Key: "acme/ca/users/x"})
	if err != nil || string(got.Value) != "v acme/ca/users/x" {
		t.Errorf("load: got %q %v", got.GetValue(), err)
	}
	if _, err := s.Load(ctx, &joinv1.LoadRequest{Key: "acme"}); fault.KindOf(err) != fault.NotFound {
		t.Errorf("load a directory: got %v, want not found", err)
	}
	list := func(prefix string, recursive bool) []string {
		r, err := s.List(ctx, &joinv1.ListRequest{Prefix: prefix, Recursive: recursive})
		if err != nil && fault.KindOf(err) != fault.NotFound {
			t.Fatal(err)
		}
		return r.GetKeys()
	}
	if got, want := list("certificates/ca", false), []string{"certificates/ca/a.test", "certificates/ca/a.test.org"}; !slices.Equal(got, want) {
		t.Errorf("list: got %v, want %v", got, want)
	}
	if got := list("certificates", true); len(got) != 3 {
		t.Errorf("list recursive: got %v, want three", got)
	}
	st, err := s.Stat(ctx, &joinv1.StatRequest{Key: "acme/ca/users/x"})
	if err != nil || !st.Terminal || st.Size != 17 || time.Since(time.UnixMilli(st.ModifiedUnixMs)) > time.Minute {
		t.Errorf("stat: got %v %v", st, err)
	}
	if st, err := s.Stat(ctx, &joinv1.StatRequest{Key: "certificates/ca"}); err != nil || st.Terminal {
		t.Errorf("stat a directory: got %v %v", st, err)
	}
	if _, err := s.Delete(ctx, &joinv1.DeleteRequest{Key: "certificates/ca/a.test", Lease: leases["issue_cert_a.test"]}); err != nil {
		t.Fatal(err)
	}
	if got, want := list("", true), []string{"acme/ca/users/x", "certificates/ca/a.test.org/x"}; !slices.Equal(got, want) {
		t.Errorf("after delete: got %v, want %v", got, want)
	}
	if _, err := s.Delete(ctx, &joinv1.DeleteRequest{Key: "certificates/ca/a.test/absent", Lease: leases["issue_cert_a.test"]}); err != nil {
		t.Errorf("delete absent: got %v", err)
	}
}

func TestService_Refuses(t *testing.T) {
	s, ctx := start(t)
	for _, tc := range []struct {
		key, value, reason string
	}{
		{"", "v", certstore.ReasonKey}, {"/a", "v", certstore.ReasonKey}, {"a/", "v", certstore.ReasonKey},
		{"a/../b", "v", certstore.ReasonKey}, {strings.Repeat("a", 401), "v", certstore.ReasonKey},
		{"a", strings.Repeat("v", certstore.MaxValue+1), certstore.ReasonTooLarge},
		{"a", "-----BEGIN EC PRIVATE KEY-----\n", certstore.ReasonPlaintext},
	} {
		if _, err := s.Store(ctx, &joinv1.StoreRequest{Key: tc.key, Value: []byte(tc.value)}); fault.ReasonOf(err) != tc.reason {
			t.Errorf("key %.20q value %.20q: got %v, want %s", tc.key, tc.value, err, tc.reason)
		}
	}
	lease := take(t, s, ctx, "issue_cert_big", "me", time.Minute)
	if _, err := s.Store(ctx, &joinv1.StoreRequest{Key: "certificates/ca/big/big.crt", Value: make([]byte, certstore.MaxValue), Lease: lease}); err != nil {
		t.Errorf("the largest value: got %v, want kept", err)
	}
	for _, n := range []identity.Name{name("us", identity.Edge), name("emea", identity.Control)} {
		ctx := peer.WithName(t.Context(), n)
		_, e1 := s.Load(ctx, &joinv1.LoadRequest{Key: "a"})
		_, e2 := s.Store(ctx, &joinv1.StoreRequest{Key: "a"})
		_, e3 := s.List(ctx, &joinv1.ListRequest{})
		_, e4 := s.Delete(ctx, &joinv1.DeleteRequest{Key: "a"})
		_, e5 := s.Stat(ctx, &joinv1.StatRequest{Key: "a"})
		_, e6 := s.Lock(ctx, &joinv1.LockRequest{Name: "a", Holder: "h", TtlMs: 2000})
		_, e7 := s.Unlock(ctx, &joinv1.UnlockRequest{Name: "a", Holder: "h"})
		_, e8 := s.Order(ctx, &joinv1.OrderRequest{Host: "a", Tries: 1, Lease: &joinv1.Lease{Name: "issue_cert_a"}})
		_, e9 := s.Ordered(ctx, &joinv1.OrderedRequest{Host: "a", Lease: &joinv1.Lease{Name: "issue_cert_a"}})
		for i, err := range []error{e1, e2, e3, e4, e5, e6, e7, e8, e9} {
			if fault.KindOf(err) != fault.Denied {
				t.Errorf("%s, call %d: got %v, want denied", n, i, err)
			}
		}
	}
	if _, err := s.Load(t.Context(), &joinv1.LoadRequest{Key: "a"}); fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("no peer: got %v, want unauthenticated", err)
	}
}

func TestService_Lock(t *testing.T) {
	s, ctx := start(t)
	try := func(holder string, ttl time.Duration) *joinv1.LockResponse {
		t.Helper()
		r, err := s.Lock(ctx, &joinv1.LockRequest{Name: "issue_a", Holder: holder, TtlMs: ttl.Milliseconds()})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := try("a", time.Minute)
	if !first.Held || first.Fence == 0 || try("b", time.Minute).Held {
		t.Fatal("lock: want a to hold it and b not")
	}
	if again := try("a", time.Minute); !again.Held || again.Fence != first.Fence {
		t.Error("renew by the holder: got refused")
	}
	if _, err := s.Unlock(ctx, &joinv1.UnlockRequest{Name: "issue_a", Holder: "b"}); err != nil || try("b", time.Minute).Held {
		t.Errorf("unlock by another: %v, and it works", err)
	}
	if _, err := s.Unlock(ctx, &joinv1.UnlockRequest{Name: "issue_a", Holder: "a"}); err != nil {
		t.Fatal(err)
	}
	second := try("b", time.Second)
	if !second.Held || second.Fence <= first.Fence {
		t.Fatalf("after unlock: got %v, want held with a higher fence than %d", second, first.Fence)
	}
	// A holder that vanished: the lock ends by itself.
	deadline := time.Now().Add(30 * time.Second)
	for !try("c", time.Minute).Held {
		if time.Now().After(deadline) {
			t.Fatal("the lock of a vanished holder never ends")
		}
		time.Sleep(50 * time.Millisecond)
	}
	// Many at once: one gets it.
	var held atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r, err := s.Lock(ctx, &joinv1.LockRequest{Name: "crowd", Holder: string(rune('a' + i)), TtlMs: 60_000})
			if err == nil && r.Held {
				held.Add(1)
			}
		})
	}
	if wg.Wait(); held.Load() != 1 {
		t.Errorf("%d hold one lock, want 1", held.Load())
	}
}
