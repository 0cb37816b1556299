package adminapi

import (
	"context"
	"slices"

	"bailiwick/controlplane/internal/model"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"
)

// Roles of operators, in the zone whose store holds their token. A role that is not here may do nothing.
const (
	RoleAdmin     = "admin"      // everything, also what the catalog holds of other zones
	RoleZoneAdmin = "zone-admin" // everything of this zone, and of the catalog what is this zone's alone
	RoleSupport   = "support"    // customers, their keys and usage
	RoleViewer    = "viewer"     // reads everything, customers included
	RoleAuditor   = "auditor"    // reads everything but customers, keys and their usage
)

// Areas are what calls are about.
const (
	look      = "look"      // at what names no customer
	customers = "customers" // reading of customers, keys and usage
	manage    = "manage"    // changing them, or taking one away whole
	edit      = "edit"      // of resources: by kind, see touch
	operate   = "operate"   // nodes, groups, ledger, approvals
	staff     = "staff"     // operators
)

var areas = map[string][]string{
	RoleAdmin:     {look, customers, manage, edit, operate, staff},
	RoleZoneAdmin: {look, customers, manage, edit, operate},
	RoleSupport:   {look, customers, manage, edit},
	RoleViewer:    {look, customers},
	RoleAuditor:   {look},
}

// rights says what area a procedure is of. What is not listed is denied: a new RPC is closed until somebody decides.
var rights = map[string]string{
	adminv1connect.ResourceServiceApplyProcedure:                     edit,
	adminv1connect.ResourceServiceGetProcedure:                       look,
	adminv1connect.ResourceServiceListProcedure:                      look,
	adminv1connect.ResourceServiceDeleteProcedure:                    edit,
	adminv1connect.ResourceServiceHistoryProcedure:                   look,
	adminv1connect.ResourceServiceCompareProcedure:                   look,
	adminv1connect.ResourceServiceRollbackProcedure:                  edit,
	adminv1connect.KeyServiceCreateKeyProcedure:                      manage,
	adminv1connect.KeyServiceCreateKeysProcedure:                     manage,
	adminv1connect.KeyServiceRevokeKeyProcedure:                      manage,
	adminv1connect.KeyServiceRotateKeyProcedure:                      manage,
	adminv1connect.KeyServiceUndoRotationProcedure:                   manage,
	adminv1connect.ResourceServiceDescribeProcedure:                  look,
	adminv1connect.KeyServiceListKeysProcedure:                       customers,
	adminv1connect.CacheServicePurgeCacheProcedure:                   operate,
	adminv1connect.NodeServiceListNodesProcedure:                     look,
	adminv1connect.NodeServiceRemoveNodeProcedure:                    operate,
	adminv1connect.NodeServiceCreateJoinTokenProcedure:               operate,
	adminv1connect.NodeServiceLeadersProcedure:                       look,
	adminv1connect.ClusterServiceListMembersProcedure:                look,
	adminv1connect.ClusterServiceTransferLeadershipProcedure:         operate,
	adminv1connect.ClusterServiceBackupProcedure:                     operate,
	adminv1connect.ClusterServiceClaimsProcedure:                     look,
	adminv1connect.ClusterServiceReleaseClaimProcedure:               operate,
	adminv1connect.BorderServiceStatusProcedure:                      look,
	adminv1connect.BorderServiceSimulateProcedure:                    look,
	adminv1connect.ApprovalServiceListApprovalsProcedure:             look,
	adminv1connect.ApprovalServiceApproveProcedure:                   operate,
	adminv1connect.ApprovalServiceRejectProcedure:                    operate,
	adminv1connect.ApprovalServiceOpenCrossingsProcedure:             operate,
	adminv1connect.RolloutServiceListRolloutsProcedure:               look,
	adminv1connect.RolloutServiceSteerRolloutProcedure:               operate,
	adminv1connect.DNSServiceExplainProcedure:                        look,
	adminv1connect.DNSServiceRegionsProcedure:                        look,
	adminv1connect.UsageServiceQueryUsageProcedure:                   customers,
	adminv1connect.UsageServiceQueryTotalsProcedure:                  look,
	adminv1connect.UsageServiceTraceUsageProcedure:                   customers,
	adminv1connect.CustomerServiceExportProcedure:                    manage,
	adminv1connect.CustomerServiceEraseProcedure:                     manage,
	adminv1connect.EvidenceServiceExportEvidenceProcedure:            look,
	adminv1connect.EvidenceServiceExportRelayRowsProcedure:           look,
	adminv1connect.EvidenceServiceCheckEvidenceProcedure:             operate,
	adminv1connect.UsageServiceQueryLatencyProcedure:                 customers,
	adminv1connect.UsageServiceForecastProcedure:                     customers,
	adminv1connect.AlertServiceCreateWebhookProcedure:                manage,
	adminv1connect.AlertServiceListWebhooksProcedure:                 customers,
	adminv1connect.AlertServiceDeleteWebhookProcedure:                manage,
	adminv1connect.AlertServiceRotateWebhookSecretProcedure:          manage,
	adminv1connect.AlertServiceListAlertsProcedure:                   customers,
	adminv1connect.LedgerServiceListEpochsProcedure:                  customers,
	adminv1connect.LedgerServiceCorrectProcedure:                     manage,
	adminv1connect.LedgerServiceUndoCorrectionProcedure:              manage,
	adminv1connect.LedgerServiceListCorrectionsProcedure:             customers,
	adminv1connect.LedgerServiceListPeriodsProcedure:                 customers,
	adminv1connect.LedgerServiceListRefusalsProcedure:                customers,
	adminv1connect.LedgerServiceListSinksProcedure:                   customers,
	adminv1connect.LedgerServiceCloseEpochProcedure:                  operate,
	adminv1connect.QuotaServiceGetQuotasProcedure:                    customers,
	adminv1connect.QuotaServiceTopUpProcedure:                        manage,
	adminv1connect.OperatorServiceListOperatorsProcedure:             look,
	adminv1connect.OperatorServiceCreateOperatorProcedure:            staff,
	adminv1connect.OperatorServiceRemoveOperatorProcedure:            staff,
	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      look,
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": look,
}

func allowed(role, area string) bool { return area != "" && slices.Contains(areas[role], area) }

// caller is who calls.
func caller(ctx context.Context) model.Operator {
	op, _ := ctx.Value(operatorKey{}).(model.Operator)
	return op
}

// operator is the name of who calls, for records of what was done.
func operator(ctx context.Context) string { return caller(ctx).Name }

// mayWrite says whether who calls may change customers, and so see their webhooks whole.
func mayWrite(ctx context.Context) bool { return allowed(caller(ctx).Role, manage) }

// readKind says whether who calls may read resources of a kind.
func readKind(ctx context.Context, kind string) error {
	if kind == "Customer" && !allowed(caller(ctx).Role, customers) {
		return fault.New(fault.Denied, "ROLE_INSUFFICIENT", "role %q may not read customers", caller(ctx).Role)
	}
	return nil
}

// touch says whether who calls may write or delete a resource. old is what is stored, nil if nothing is: nobody takes a
// thing from another zone by naming his own in it.
func (s *server) touch(ctx context.Context, old, rec record) error {
	role := caller(ctx).Role
	for _, r := range []record{old, rec} {
		if r == nil {
			continue
		}
		kind, name := fullName(r)
		zone := ""
		switch v := r.(type) {
		case model.Zone:
			zone = v.Name
		case model.Region:
			zone = v.Zone
		case model.Policy:
			zone = v.Zone
		case model.API:
			zone = v.Zone
		case model.Switch: // of one region it is that zone's
			if region, ok, err := stored[model.Region](s.Catalog.Local(), model.PrefixRegion+v.Region); err == nil && ok {
				zone = region.Zone
			}
		case model.Closure:
			zone = v.Zone
		case model.Drain:
			zone = v.Zone
		case model.Customer:
			zone = v.Zone
		}
		switch {
		case role == RoleAdmin:
		case role == RoleZoneAdmin && zone == s.Zone:
		case role == RoleSupport && kind == "Customer":
		case role == RoleZoneAdmin && zone == "":
			return fault.New(fault.Denied, "ROLE_INSUFFICIENT", "%s %s is every zone's: role %q writes what is of zone %s alone", kind, name, role, s.Zone)
		case role == RoleZoneAdmin:
			return fault.New(fault.Denied, "ROLE_INSUFFICIENT", "%s %s is of zone %s: role %q writes what is of zone %s alone", kind, name, zone, role, s.Zone)
		default:
			return fault.New(fault.Denied, "ROLE_INSUFFICIENT", "role %q may not write a %s", role, kind)
		}
	}
	return nil
}
