package controlplane

import (
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/model"
)

// An edge that was cut off while a customer was deleted brings his usage later: it must not have all its usage
// refused for that. A name that this zone never held stays foreign.
func TestHomed_ADeletedCustomerStaysAttributable(t *testing.T) {
	s := apitest.NewStore("store/emea")
	s.Put(model.PrefixCustomer+"acme", model.Encode(model.Customer{Name: "acme", Zone: "emea"}))
	s.Put(model.PrefixGone+"bygone", model.Encode(model.Gone{Name: "bygone", At: time.Unix(1, 0)}))
	for name, want := range map[string]bool{"acme": true, "bygone": true, "globex": false, "": false} {
		if got := homed(s.Local(), name); got != want {
			t.Errorf("customer %q: homed is %v, want %v", name, got, want)
		}
	}
}
