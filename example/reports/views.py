"""Upload a file, watch its report come, read it. Everybody sees their own only."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.core.files.base import ContentFile
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods

from agentic_django.models import AgentRun
from example.reports.forms import UploadForm
from example.reports.models import Report
from example.reports.sample import NAME, sample


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def reports(request: HttpRequest) -> HttpResponse:
    """List this person's reports, and begin another."""
    form = UploadForm(request.POST, request.FILES) if request.method == "POST" else UploadForm()
    if form.is_bound and form.is_valid():
        return redirect("report", Report.begin(request.user, form.cleaned_data["file"]).pk)
    mine = Report.objects.filter(owner=request.user.pk).select_related("run")[:50]
    context = {"form": form, "reports": mine}
    return render(request, "reports/reports.html", context)


@login_required
@require_http_methods(["GET", "HEAD"])
def report(request: HttpRequest, pk: int) -> HttpResponse:
    """Show a report: its progress, then its result."""
    report = get_object_or_404(Report, pk=pk, owner=request.user.pk)
    run = AgentRun.objects.with_queue_position().with_steps().filter(pk__in=[report.run_id]).first()
    return render(request, "reports/report.html", {"report": report, "run": run})


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def sample_file(request: HttpRequest) -> HttpResponse:
    """Download the sample file, or start a report on it for a POST."""
    if request.method == "POST":
        return redirect("report", Report.begin(request.user, ContentFile(sample(), NAME)).pk)
    headers = {"Content-Disposition": f'attachment; filename="{NAME}"'}
    return HttpResponse(sample(), content_type="text/csv; charset=utf-8", headers=headers)
