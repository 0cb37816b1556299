package certstore_test

import (
	"fmt"
	"testing"
	"time"

	"bailiwick/controlplane/internal/certstore"
	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
	"bailiwick/shared/fault"
)

// An edge has the locks of the hosts that it serves, and chooses what it writes under them: one host's lock does not fill the
// store, nor the lock of accounts, and what is full for one is not for another.
func TestStore_OneLockDoesNotFillIt(t *testing.T) {
	s, ctx := start(t)
	leases := map[string]*joinv1.Lease{}
	for _, name := range []string{"issue_cert_a.test", "issue_cert_b.test"} {
		leases[name] = take(t, s, ctx, name, "me", time.Minute)
	}
	store := func(lock, key string, size int) error {
		_, err := s.Store(ctx, &joinv1.StoreRequest{Key: key, Value: make([]byte, size), Lease: leases[lock]})
		return err
	}
	for i := range certstore.MaxHostValues {
		if err := store("issue_cert_a.test", fmt.Sprintf("certificates/ca%d/a.test/a.test.key", i), 10); err != nil {
			t.Fatalf("value %d: %v", i, err)
		}
	}
	for what, err := range map[string]error{
		"one value more":       store("issue_cert_a.test", "certificates/more/a.test/a.test.key", 10),
		"a challenge":          store("issue_cert_a.test", "acme/ca/challenge_tokens/a.test.json", 10),
		"an account":           store("issue_cert_a.test", "acme/ca/users/x/x.json", 10),
		"what is there anew":   store("issue_cert_a.test", "certificates/ca0/a.test/a.test.key", 20),
		"another host's":       store("issue_cert_b.test", "certificates/ca/b.test/b.test.key", 10),
		"a host of many bytes": manyBytes(store),
	} {
		full := what == "one value more" || what == "a challenge" || what == "a host of many bytes"
		if got := fault.ReasonOf(err) == certstore.ReasonFull; got != full || !got && err != nil {
			t.Errorf("%s: got %v, want full %v", what, err, full)
		}
	}
	if _, err := s.Delete(ctx, &joinv1.DeleteRequest{Key: "certificates/ca1/a.test", Lease: leases["issue_cert_a.test"]}); err != nil {
		t.Fatal(err)
	}
	if err := store("issue_cert_a.test", "certificates/more/a.test/a.test.key", 10); err != nil {
		t.Errorf("where one was deleted: %v", err)
	}
}

func manyBytes(store func(lock, key string, size int) error) (err error) {
	for i := 0; err == nil && i < certstore.MaxHostValues; i++ {
		err = store("issue_cert_b.test", fmt.Sprintf("certificates/big%d/b.test/b.test.key", i), certstore.MaxValue)
	}
	return err
}
