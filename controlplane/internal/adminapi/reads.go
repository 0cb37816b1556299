package adminapi

import (
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"connectrpc.com/connect"

	"bailiwick/controlplane/internal/evidence"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/manifest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"
)

// ReasonHeader of a call says why its operator wants to see a customer's data.
const ReasonHeader = "Bailiwick-Reason"

const maxReason = 256 // bytes

// everyone stands for all customers of the zone.
const everyone = ""

// reading says of a procedure whose data its answer tells, so that the zone's log can say who saw it (invariant 20).
type reading struct {
	whose func(s *server, req any) []string // names of customers; everyone; nil: nobody's, this time
	why   string                            // why it tells nobody's, of one without whose
	// refusal: only when it is refused does it tell anything; what it does leaves a record of its own.
	refusal bool
	// stored: of those whom it names, it tells of such as there are.
	stored bool
}

func nobody(why string) reading { return reading{why: why} }

// named is of one customer, or of everyone where none is named.
func named(_ *server, req any) []string {
	if r, ok := req.(interface{ GetCustomer() string }); ok {
		return []string{r.GetCustomer()}
	}
	return []string{everyone}
}

func all(*server, any) []string { return []string{everyone} }

// byKind is of resources: customers are one kind among many.
func byKind(of map[string]func(name string) string) func(*server, any) []string {
	return func(_ *server, req any) []string {
		r, ok := req.(interface{ GetKind() string })
		if !ok {
			return []string{everyone}
		}
		k, ok := manifest.ParseKind(r.GetKind())
		if !ok || of[k.Name] == nil {
			return nil
		}
		name := everyone
		if n, ok := req.(interface{ GetName() string }); ok {
			name = n.GetName()
		}
		return []string{of[k.Name](name)}
	}
}

func itself(name string) string { return name }
func anybody(string) string     { return everyone }

// dryRun shows how documents differ from what is stored. What is written leaves a record as a change.
func dryRun(_ *server, req any) (out []string) {
	apply, ok := req.(*adminv1.ApplyRequest)
	if !ok {
		return []string{everyone}
	}
	for _, r := range apply.GetResources() {
		if apply.GetDryRun() && r.GetCustomer() != nil {
			out = append(out, r.GetName())
		}
	}
	return out
}

// ofKey is of whoever a key belongs to.
func ofKey(s *server, req any) []string {
	r, ok := req.(interface{ GetKeyId() string })
	switch {
	case !ok:
		return []string{everyone}
	case r.GetKeyId() == "":
		return nil
	}
	k, ok, err := stored[model.Key](s.Store.Local(), model.PrefixKey+r.GetKeyId())
	if err != nil || !ok {
		return []string{everyone}
	}
	return []string{k.Customer}
}

const (
	changes  = "changes something, and that leaves a record of its own"
	noPerson = "nodes, groups and rules; no customer is named"
)

// readings classifies every procedure; a test finds one that is not here, and until then it is taken to tell everything.
var readings = map[string]reading{
	adminv1connect.ResourceServiceApplyProcedure:             {whose: dryRun, stored: true},
	adminv1connect.ResourceServiceGetProcedure:               {whose: byKind(map[string]func(string) string{"Customer": itself})},
	adminv1connect.ResourceServiceListProcedure:              {whose: byKind(map[string]func(string) string{"Customer": anybody})},
	adminv1connect.ResourceServiceDeleteProcedure:            {whose: byKind(map[string]func(string) string{"Customer": itself, "Plan": anybody}), refusal: true}, // it names who is in the way
	adminv1connect.ResourceServiceHistoryProcedure:           nobody("the catalog's, which holds no customer"),
	adminv1connect.ResourceServiceCompareProcedure:           nobody("the catalog's, which holds no customer"),
	adminv1connect.ResourceServiceRollbackProcedure:          {whose: all, refusal: true}, // it names who uses what would go
	adminv1connect.RolloutServiceListRolloutsProcedure:       nobody("the catalog's, which holds no customer"),
	adminv1connect.RolloutServiceSteerRolloutProcedure:       nobody(changes),
	adminv1connect.KeyServiceCreateKeyProcedure:              nobody(changes),
	adminv1connect.KeyServiceCreateKeysProcedure:             nobody(changes),
	adminv1connect.KeyServiceRevokeKeyProcedure:              nobody(changes),
	adminv1connect.KeyServiceRotateKeyProcedure:              nobody(changes),
	adminv1connect.KeyServiceUndoRotationProcedure:           nobody(changes),
	adminv1connect.ResourceServiceDescribeProcedure:          {whose: byKind(map[string]func(string) string{"Customer": itself, "Plan": anybody})}, // a plan's customers refer to it
	adminv1connect.KeyServiceListKeysProcedure:               {whose: named},
	adminv1connect.NodeServiceListNodesProcedure:             nobody(noPerson),
	adminv1connect.CacheServicePurgeCacheProcedure:           nobody(noPerson),
	adminv1connect.NodeServiceRemoveNodeProcedure:            nobody(noPerson),
	adminv1connect.NodeServiceCreateJoinTokenProcedure:       nobody(noPerson),
	adminv1connect.NodeServiceLeadersProcedure:               nobody(noPerson),
	adminv1connect.ClusterServiceListMembersProcedure:        nobody(noPerson),
	adminv1connect.ClusterServiceTransferLeadershipProcedure: nobody(noPerson),
	adminv1connect.ClusterServiceBackupProcedure:             nobody("what it writes is sealed under the zone's key and rests on the node; it must work without a quorum"),
	adminv1connect.ClusterServiceClaimsProcedure:             nobody(noPerson),
	adminv1connect.ClusterServiceReleaseClaimProcedure:       nobody(noPerson),
	adminv1connect.BorderServiceStatusProcedure:              nobody(noPerson),
	adminv1connect.BorderServiceSimulateProcedure:            {whose: ofKey},
	adminv1connect.ApprovalServiceListApprovalsProcedure:     nobody(noPerson),
	adminv1connect.ApprovalServiceApproveProcedure:           nobody(changes),
	adminv1connect.ApprovalServiceRejectProcedure:            nobody(changes),
	adminv1connect.ApprovalServiceOpenCrossingsProcedure:     nobody(changes),
	adminv1connect.DNSServiceExplainProcedure:                nobody(noPerson),
	adminv1connect.DNSServiceRegionsProcedure:                nobody(noPerson),
	adminv1connect.UsageServiceQueryUsageProcedure:           {whose: named},
	adminv1connect.UsageServiceQueryTotalsProcedure:          nobody("sums without a customer column"),
	adminv1connect.UsageServiceQueryLatencyProcedure:         nobody("quantiles without a customer column"),
	adminv1connect.UsageServiceForecastProcedure:             {whose: named},
	adminv1connect.UsageServiceTraceUsageProcedure:           {whose: named},
	adminv1connect.QuotaServiceGetQuotasProcedure:            {whose: named},
	adminv1connect.QuotaServiceTopUpProcedure:                {whose: named}, // it answers what he used; the change itself is the ledger's
	adminv1connect.LedgerServiceListEpochsProcedure:          nobody("what edges have sent; no customer is named"),
	adminv1connect.LedgerServiceCloseEpochProcedure:          nobody("what edges have sent; no customer is named"),
	adminv1connect.LedgerServiceCorrectProcedure:             {whose: named}, // likewise
	adminv1connect.LedgerServiceUndoCorrectionProcedure:      {whose: all},   // it names a correction, and no customer
	adminv1connect.LedgerServiceListCorrectionsProcedure:     {whose: named},
	adminv1connect.LedgerServiceListPeriodsProcedure:         nobody("closed days; no customer is named"),
	adminv1connect.LedgerServiceListSinksProcedure:           nobody("positions; no customer is named"),
	adminv1connect.LedgerServiceListRefusalsProcedure:        nobody("edges and reasons; package attribution names no customer"),
	adminv1connect.CustomerServiceExportProcedure:            {whose: named}, // streams: Export records it itself
	adminv1connect.CustomerServiceEraseProcedure:             nobody(changes),
	adminv1connect.EvidenceServiceExportEvidenceProcedure:    nobody("customers are digests in it"),
	adminv1connect.EvidenceServiceExportRelayRowsProcedure:   nobody("ids of requests and grants; no customer is named"),
	adminv1connect.EvidenceServiceCheckEvidenceProcedure:     nobody("counts of records"),
	adminv1connect.AlertServiceCreateWebhookProcedure:        nobody(changes),
	adminv1connect.AlertServiceListWebhooksProcedure:         {whose: all},
	adminv1connect.AlertServiceDeleteWebhookProcedure:        nobody(changes),
	adminv1connect.AlertServiceRotateWebhookSecretProcedure:  nobody(changes),
	adminv1connect.AlertServiceListAlertsProcedure:           {whose: named},
	adminv1connect.OperatorServiceListOperatorsProcedure:     nobody("operators; no customer is named"),
	adminv1connect.OperatorServiceCreateOperatorProcedure:    nobody(changes),
	adminv1connect.OperatorServiceRemoveOperatorProcedure:    nobody(changes),
}

// recorded has what a call tells of customers in the zone's log before the answer goes out. It is asked after the call,
// when it is known that there is something to tell: names that nobody has leave no record.
func (s *server) recorded() connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			r, classified := readings[req.Spec().Procedure]
			if !classified {
				r.whose = all
			}
			if r.whose == nil {
				return next(ctx, req)
			}
			whose := r.whose(s, req.Any())
			if len(whose) == 0 {
				return next(ctx, req)
			}
			reason, err := s.reasonOf(ctx, req.Any())
			if err != nil {
				return nil, err
			}
			resp, err := next(ctx, req)
			switch conflict := fault.KindOf(err) == fault.Conflict; { // which names what is in the way
			case err != nil && !conflict:
				return nil, err
			case err == nil && r.refusal:
				return resp, nil
			case r.stored:
				whose = s.known(whose)
			}
			if err := s.record(ctx, req.Spec().Procedure, whose, reason); err != nil {
				return nil, err
			}
			return resp, err
		}
	}
}

// known are those of names that customers have or had. This node has applied what the call before it read.
func (s *server) known(names []string) []string {
	local := s.Store.Local()
	return slices.DeleteFunc(names, func(n string) bool {
		_, is := local.Get(model.PrefixCustomer + n)
		_, was := local.Get(model.PrefixGone + n)
		return !is && !was
	})
}

// reasonOf is why an operator wants to read, and refuses him where the zone wants one and there is none.
func (s *server) reasonOf(ctx context.Context, req any) (string, error) {
	reason, _ := ctx.Value(reasonKey{}).(string)
	if r, ok := req.(interface{ GetReason() string }); ok && reason == "" { // of a change: it rests whole with the change
		reason = strings.Map(func(c rune) rune {
			if unicode.IsControl(c) {
				return ' '
			}
			return c
		}, strings.ToValidUTF8(r.GetReason(), ""))
		for len(reason) > maxReason {
			_, n := utf8.DecodeLastRuneInString(reason)
			reason = reason[:len(reason)-n]
		}
	}
	reason = strings.TrimSpace(reason)
	if len(reason) > maxReason || !utf8.ValidString(reason) || strings.ContainsFunc(reason, unicode.IsControl) {
		return "", fault.New(fault.Invalid, "REASON_INVALID", "the reason for reading a customer's data: want at most %d bytes of text in one line", maxReason)
	}
	if reason != "" {
		return reason, nil
	}
	zone, ok, err := stored[model.Zone](s.Catalog.Local(), model.PrefixZone+s.Zone)
	if err != nil {
		return "", err
	}
	if ok && zone.ReadsNeedReason {
		return "", fault.New(fault.Denied, "REASON_REQUIRED", "zone %s wants a reason for each reading of a customer's data: say why, by --reason, BAILIWICK_REASON or the header %s; it stands in the zone's log for good, so name a ticket and no person", s.Zone, ReasonHeader)
	}
	return "", nil
}

// record writes who is shown whose data into the zone's log. Without the zone's quorum nothing is shown: an answer that
// nobody would ever know of is what this is against. However long the call may take, this takes no longer than any write.
func (s *server) record(ctx context.Context, procedure string, customers []string, reason string) error {
	if procedure = strings.TrimPrefix(procedure, "/"); strings.HasPrefix(procedure, servicePrefix) {
		procedure = procedure[len(servicePrefix):]
	}
	procedure = strings.ReplaceAll(procedure, "/", ".")
	ctx, done := context.WithTimeout(ctx, s.Wait)
	defer done()
	for _, c := range customers {
		err := s.reads.once(ctx, seenBy{operator(ctx), procedure}, seen{c, reason}, func(what seen) error {
			read := model.Read{Procedure: procedure, Reason: what.reason}
			if what.customer != everyone {
				read.Customer = evidence.CustomerDigest(s.mask, what.customer)
			}
			_, err := s.commit(ctx, s.Store, group.Txn{RequestID: "read/" + rand.Text(), Ops: []group.Op{{Key: model.KeyRead, Value: model.Encode(read)}}})
			return err
		})
		if err != nil {
			f := fault.New(fault.KindOf(err), fault.ReasonOf(err), "customers' data is shown when the zone's log says to whom, and it cannot be written to: %w", err)
			return f
		}
	}
	return nil
}

const servicePrefix = "bailiwick.admin.v1."

type reasonKey struct{}
